import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import pdmd

ROOT = Path(__file__).parents[1]


def test_importing_loads_no_heavy_package():
    code = (
        "import sys, pdmd; "
        "print([m for m in ('diffusers', 'transformers', 'torchtitan', 'tensordict', 'sklearn', "
        "'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "[]"


def test_public_names_are_there():
    assert sorted(pdmd.__all__) == list(pdmd.__all__)
    assert all(hasattr(pdmd, name) for name in pdmd.__all__)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_examples_run(path, capsys):
    from pdmd.teachers.base import teachers

    known = set(teachers)
    runpy.run_path(str(path), run_name="__main__")
    for name in set(teachers) - known:
        teachers.remove(name)
    assert capsys.readouterr().out


def test_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    assert "updates=200" in code
    exec(compile(code.replace("updates=200", "updates=2"), "README.md", "exec"), {})
