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
    lines = ["dis", "distill digits --train.ac", "distill --train.curriculum ''"]
    lines += ["check digits --sk", "check fas", "distill my.toml --teacher.name sd3"]
    lines += ["evaluate x --metrics clip ke", "plan my_"]
    code = f"source {script}; f=$(complete -p pdmd | sed 's/.*-F \\([^ ]*\\).*/\\1/')\n"
    code += 'try() { COMP_WORDS=(pdmd "$@"); COMP_CWORD=$#; $f; echo "${COMPREPLY[@]}"; }\n'
    code += "\n".join(f"try {line}" for line in lines)
    run = subprocess.run(["bash", "-c", code], capture_output=True, text=True, timeout=60)
    found = [line.split() for line in run.stdout.splitlines()]
    expected = [["distill"], ["--train.accumulate"], ["progressive", "joint", "shared"]]
    expected += [["--skip"], ["fashion"], ["sd3"], ["kernel"]]
    assert found == [*expected, []]  # of which bash makes a file's name
    assert "complete -o bashdefault -o default -F" in script.read_text()


@pytest.mark.parametrize("shell", SHELLS[1:])
def test_other_shells_have_a_script(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "train.fake-updates" in script and "pretrain" in script
    assert "qwen_image_edit" in script and "or ['__TYRO_COMPLETE_FILES__']" in script
    assert "--no-files" not in script
