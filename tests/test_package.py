import re
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


SHOWN = {  # what an example prints, as a pattern
    "01_mixture_2d": r"to the exact law: 0\.[0-4]\d*\nNFE: 2\n",
    "02_custom_teacher": r"of the student: \[0\.\d+, 0\.\d+\]",
    "03_composed_objectives": r"\+ 0\.05 \* Repulsion\(\)\n2 experts, 2 NFE\n",
    "04_write_an_objective": r"\+ 0\.1 \* .*Variance.*\.only\(2\)\n2 NFE\n",
    "05_parallel_plan": r"tp on 1 rank.*cp on 1 rank",
    "06_new_family": r"PASS  range.*PASS  guidance",
}


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_examples_run(path, capsys):
    from pdmd.teachers.base import teachers

    registered = set(teachers)
    runpy.run_path(str(path), run_name="__main__")
    for name in set(teachers) - registered:
        teachers.remove(name)
    assert re.search(SHOWN[path.stem], capsys.readouterr().out, re.DOTALL)


def test_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    assert "updates=200" in code
    exec(compile(code.replace("updates=200", "updates=2"), "README.md", "exec"), {})
