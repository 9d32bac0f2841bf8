"""The package: public names, imports, and the examples' output."""

import importlib
import importlib.metadata
import pkgutil
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import torch

import pdmd

ROOT = Path(__file__).parents[1]

PUBLIC = """
    AdamRecipe
    AdaptedDenoiser
    AdaptiveUpdates
    CosineVP
    Denoiser
    DiscreteVP
    Disjoint
    DistributionMatching
    Expert
    ExpertTraining
    FakeScoreTraining
    FromDenoiser
    FromPrevious
    FromTeacher
    FullGradient
    Guided
    Initializer
    IntervalRouter
    Joint
    LinearVP
    LowRank
    LowRankRoles
    MixtureTeacher
    MlpDenoiser
    Models
    Nested
    Objective
    OdeExpert
    OneFakeScore
    OneFakeScorePerExitStep
    PerStep
    Phase
    PhaseContext
    PhaseInputBuffer
    PhasePlan
    Prediction
    Progressive
    RectifiedFlow
    RenoisingExpert
    Rollout
    Rollouts
    RoutedDenoiser
    Router
    Schedule
    Session
    Shifted
    StochasticTruncation
    Student
    SubintervalScoreMatching
    Teacher
    Truncation
    VarianceExploding
    VariancePreserving
    WeightedSum
    distill
    experts
    objectives
    ode_step
    renoise_step
    routers
    sample
    sample_ode
    sample_sde
    subinterval_target
    teachers
    trajectory
"""


def test_public_names():
    assert sorted(pdmd.__all__) == PUBLIC.split()
    assert all(hasattr(pdmd, name) for name in pdmd.__all__)


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


def modules():
    """Yields every module of the library, by name."""
    yield "pdmd"
    for info in pkgutil.walk_packages(pdmd.__path__, "pdmd."):
        if info.name != "pdmd.__main__":
            yield info.name


def test_no_name_hides_a_module():
    hidden = []
    for name in modules():
        importlib.import_module(name)
        package, _, last = name.rpartition(".")
        if package and not isinstance(getattr(sys.modules[package], last), ModuleType):
            hidden.append(name)
    assert hidden == []


def test_every_module_lists_its_public_names():
    for name in modules():
        module = importlib.import_module(name)
        content = Path(str(module.__file__)).read_text().split('"""', 2)[2].strip()
        if content and not content.startswith("#"):
            public = getattr(module, "__all__", None)
            assert public is not None, name
            assert [n for n in public if not hasattr(module, n)] == [], name


def run_example(name, capsys):
    """Runs an example and returns the lines it prints."""
    (path,) = (ROOT / "examples").glob(f"{name}_*.py")
    runpy.run_path(str(path), run_name="__main__")
    return capsys.readouterr().out.splitlines()


def test_example_1_distills_a_mixture(capsys):
    distance, nfe = run_example("01", capsys)
    assert distance.startswith("sliced Wasserstein distance to the ")
    assert float(distance.split(": ")[1]) < 0.3  # 1.07 for samples at the origin
    assert nfe.endswith(": 2")


@pytest.mark.slow
def test_example_2_beats_euler_steps(capsys):
    from pdmd.teachers.base import teachers

    try:
        lines = run_example("02", capsys)
    finally:
        if "arcs" in teachers:
            teachers.remove("arcs")
    many, few, student = (float(line.split("steps")[1].split()[0]) for line in lines)
    assert many < student < 0.8 * few
    page = (ROOT / "docs" / "tutorials" / "register_a_teacher.md").read_text()
    (written,) = re.findall(r"are (0\.\d+) from .* student (0\.\d+), .* teacher (0\.\d+)", page)
    assert [float(x) for x in written] == pytest.approx([few, student, many], rel=0.25)


def test_example_2_is_a_plugin(monkeypatch, tmp_path):
    from pdmd.cli.config import TeacherConfig
    from pdmd.teachers.base import teachers

    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    config = TeacherConfig(
        name="arcs", plugins=("02_custom_teacher",), arguments={"updates": 2}, guidance=(2.0,)
    )
    try:
        student = pdmd.distill(
            config.build(),
            pdmd.PhasePlan.uniform(1),
            updates=1,
            source=config.source(),
            check_score=False,
            progress=False,
        )
        student.save(tmp_path)
        again = pdmd.Student.load(tmp_path)  # by the registered name
        x = pdmd.sample(again, again.encode([0, 1]), generator=torch.Generator().manual_seed(0))
        y = pdmd.sample(
            student, student.encode([0, 1]), generator=torch.Generator().manual_seed(0)
        )
        assert torch.equal(x, y)
        with pytest.raises(ValueError, match="a prompt is 0, 1 or None, got 'cat'"):
            again.encode(["cat"])
    finally:
        if "arcs" in teachers:
            teachers.remove("arcs")
        sys.modules.pop("02_custom_teacher", None)


def test_example_3_composes_objectives(capsys):
    objective, *rows = run_example("03", capsys)
    assert re.fullmatch(
        r"DistributionMatching\(.*\) \+ 0\.02 \* Repulsion\(\) \+ 0\.02 \* "
        r"\(Adversarial\(.*\)\)\.only\(2\)",
        objective,
    )
    assert len(rows) == 8 and {len(row) for row in rows} == {4 * 8 * 2}
    ink = ["".join(row[16 * i : 16 * i + 16] for row in rows) for i in range(4)]
    assert all(0.2 < 1 - digit.count(" ") / len(digit) < 0.8 for digit in ink)  # four digits


def test_example_4_restricts_an_objective_to_a_phase(capsys):
    objective, nfe = run_example("04", capsys)
    assert re.fullmatch(
        r"DistributionMatching\(.*\) \+ 0\.1 \* \(Variance\(std=1\.0\)\)\.only\(\d,?\)", objective
    )
    assert nfe.startswith("2 ")


def test_example_5_parallelizes_a_transformer(capsys):
    lines = run_example("05", capsys)
    errors = {line.split()[0]: float(line.split()[-1]) for line in lines}
    assert set(errors) == {"tp", "cp"} and max(errors.values()) < 1e-9


def test_example_6_passes_the_conformance_check(capsys):
    from pdmd.teachers.base import teachers

    try:
        lines = run_example("06", capsys)
    finally:
        if "aura_flow" in teachers:
            teachers.remove("aura_flow")
    assert lines and not any("fail" in line for line in lines)


def test_every_example_is_run():
    numbers = [path.name[:2] for path in sorted((ROOT / "examples").glob("*.py"))]
    assert numbers == ["01", "02", "03", "04", "05", "06"]


def test_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    assert "updates=200" in code
    exec(compile(code.replace("updates=200", "updates=2"), "README.md", "exec"), {})


def test_the_oldest_versions_tested_are_the_lower_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    stated = [*project["dependencies"], *extras["diffusers"], *extras["report"]]
    bounds = dict(re.findall(r"^([\w-]+)>=([\d.]+),<", "\n".join(stated), re.M))
    tested = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "oldest.txt").read_text(), re.M))
    pad = lambda version: [int(part) for part in f"{version}.0.0".split(".")[:3]]  # noqa: E731
    assert {n: pad(v) for n, v in tested.items()} == {
        n: pad(v) for n, v in bounds.items() if n != "torch"
    }


def test_what_runs_here_is_below_the_ceilings():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    names = ("train", "diffusers", "report", "metrics", "quantized")
    stated = [*project["dependencies"], *(line for name in names for line in extras[name])]
    for line in stated:
        name, ceiling = re.fullmatch(r"([\w-]+).*?(?:<|==)([\d.]+)(?:\.\*)?", line).groups()
        installed = importlib.metadata.version(name).partition("+")[0]
        parts = [[int(part) for part in v.split(".")] for v in (installed, ceiling)]
        within = parts[0] < parts[1] or ("==" in line and installed.startswith(f"{ceiling}."))
        assert within, f"{name} {installed} is not below the ceiling of {line}"
