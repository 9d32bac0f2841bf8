"""The notebooks: valid, and run cell by cell."""

import json
import time
from pathlib import Path

import pytest

import pdmd

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"
NAMES = ("first_distillation", "own_teacher")


def cells(name, kind="code"):
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == kind]


def test_all_notebooks_are_tested():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_valid_and_has_no_outputs(name):
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text())
    for cell in notebook["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None
    assert cells(name, "markdown")[0].startswith("# ")
    for code in cells(name):
        compile(code, name, "exec")
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(nbformat.read(FOLDER / f"{name}.ipynb", as_version=4))


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs(name, monkeypatch):
    """Every cell, with fewer updates; the kernel's test below runs them as they stand."""
    distill = pdmd.distill
    monkeypatch.setattr(pdmd, "distill", lambda *a, **k: distill(*a, **{**k, "updates": 3}))
    pytest.importorskip("matplotlib").use("agg")
    namespace = {"__name__": "__main__"}
    for code in cells(name):
        exec(compile(code, name, "exec"), namespace)
    assert namespace["student"].plan.nfe == 4
    html = namespace["student"]._repr_html_() + namespace["student"].plan._repr_html_()
    assert html.count("<table") == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_in_a_kernel(name):
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient").NotebookClient
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    started = time.perf_counter()
    client(notebook, timeout=300).execute()
    assert time.perf_counter() - started < 300
    assert any(
        o.get("data", {}).get("image/png") for c in notebook.cells for o in c.get("outputs", ())
    )
