"""Completion: the shells' scripts know commands, options and choices."""

import shutil
import subprocess

import pytest

from pdmd.cli.completion import OPTIONS, SHELLS
from pdmd.cli.main import COMMANDS, main


def test_every_command_has_its_options_and_an_unknown_shell_is_named(capsys):
    assert OPTIONS.keys() == COMMANDS.keys()
    assert main(["completion", "cmd"]) == 2
    assert "no completion for 'cmd'; choose one of bash, zsh, fish" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_options_and_choices(tmp_path, capsys):
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "pdmd.bash"
    script.write_text(capsys.readouterr().out)
    lines = [["pdmd", "dis"], ["pdmd", "distill", "digits", "--train.ac"]]
    lines += [["pdmd", "distill", "--train.curriculum", ""], ["pdmd", "check", "digits", "--sk"]]
    found = []
    for words in lines:
        quoted = " ".join(f"'{word}'" for word in words)
        code = (
            f"source {script}; f=$(complete -p pdmd | sed 's/.*-F \\([^ ]*\\).*/\\1/'); "
            f'COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; $f; echo "${{COMPREPLY[@]}}"'
        )
        run = subprocess.run(["bash", "-c", code], capture_output=True, text=True, timeout=60)
        found.append(run.stdout.split())
    expected = [["distill"], ["--train.accumulate"], ["progressive", "joint", "shared"]]
    assert found == [*expected, ["--skip"]]


@pytest.mark.parametrize("shell", SHELLS[1:])
def test_other_shells_have_a_script(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "train.fake-updates" in script and "pretrain" in script
