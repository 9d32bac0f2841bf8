"""The pages run and say what their sources hold."""

import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pdmd

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [p for p in sorted(DOCS.rglob("*.md")) if "```python" in p.read_text()]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    short = functools.partial(pdmd.distill, updates=1, fake_updates=1, batch_size=8)
    monkeypatch.setattr(pdmd, "distill", short)
    if "runs/digits/student" in page.read_text():
        teacher = pdmd.teachers.get("digits")()
        source = {"teacher": "digits", "arguments": {}}
        plan = pdmd.PhasePlan.uniform(4)
        pdmd.distill(teacher, plan, source=source).save("runs/digits/student")
    namespace = {}
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        exec(compile(block, str(page), "exec"), namespace)


COMMANDS = [
    (page, line)
    for page in [*sorted(DOCS.rglob("*.md")), DOCS.parent / "README.md"]
    for line in re.findall(r"^\$ (?:torchrun .* -m )?(pdmd .*)$", page.read_text(), re.MULTILINE)
]


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=lambda v: getattr(v, "stem", None))
def test_the_commands_of_a_page_are_commands(page, line, capsys, monkeypatch, tmp_path):
    from pdmd.cli.main import main

    command, *words = line.split("  #")[0].split()[1:]
    if command == "distill":  # read as written, up to the run
        seen = []
        monkeypatch.setattr(
            "pdmd.cli.distill._run", lambda config, options: seen.append(config) or 0
        )
        toml = [i for i, word in enumerate(words) if word.endswith(".toml")]
        for i in toml:
            (tmp_path / "my.toml").write_text("[plan]\nphases = 2\n")
            words[i] = str(tmp_path / "my.toml")
        assert main([command, *words]) == 0 and len(seen) == 1
    else:
        options = [word for word in words if word.startswith("--")]
        assert main([command, "--help"]) == 0
        printed = capsys.readouterr().out
        assert all(option in printed for option in options)


@pytest.mark.parametrize("script", ["make.py", "plan_table.py"])
def test_pages_are_what_their_figures_say(script):
    root = DOCS.parent
    words = [sys.executable, f"docs/evidence/{script}", "--check"]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


LAUNCH = sorted((DOCS.parent / "examples" / "launch").iterdir())


@pytest.mark.parametrize("script", LAUNCH, ids=lambda p: p.name)
def test_launch_scripts_parse(script):
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
