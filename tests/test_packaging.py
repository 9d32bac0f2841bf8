"""What is shipped: the wheel, its types, and the files around the library."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import pdmd

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    builders = pytest.importorskip("hatchling.builders.wheel")
    (path,) = builders.WheelBuilder(str(ROOT)).build(
        directory=str(tmp_path_factory.mktemp("dist")), versions=["standard"]
    )
    with zipfile.ZipFile(path) as opened:
        yield {name: opened.read(name) for name in opened.namelist()}


def test_the_wheel_has_every_file_of_the_library_and_nothing_else(wheel):
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "pdmd"]
    tracked = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True)
    files = {name for name in wheel if ".dist-info/" not in name}
    assert files == set(tracked.stdout.split())
    assert {"pdmd/py.typed", "pdmd/cli/presets/digits.toml"} <= files
    assert any(name.endswith(".safetensors") for name in files)
    assert any(name.endswith(".html.j2") for name in files)


def test_the_wheel_states_the_core_the_extras_and_the_command(wheel):
    (metadata,) = (text.decode() for name, text in wheel.items() if name.endswith("/METADATA"))
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    header = metadata.split("\n\n")[0].splitlines()
    values = [line.split(": ", 1) for line in header if ": " in line]
    needed = [value for key, value in values if key == "Requires-Dist"]
    core = {re.match(r"[\w.-]+", line)[0] for line in needed if "extra ==" not in line}
    assert core == {re.match(r"[\w.-]+", line)[0] for line in stated["dependencies"]}
    extras = {value for key, value in values if key == "Provides-Extra"}
    assert extras == set(stated["optional-dependencies"])
    assert any("torchtitan" in line and "extra == 'all'" in line for line in needed)
    assert ["License-Expression", "Apache-2.0"] in values
    assert "# pdmd" in metadata and "Phased DMD" in metadata  # the readme
    (entry,) = (text.decode() for name, text in wheel.items() if "entry_points" in name)
    assert "pdmd = pdmd.cli.main:main" in entry


def test_a_program_that_uses_the_library_has_its_types(tmp_path):
    pyright = Path(sys.executable).with_name("pyright")
    if not pyright.exists():
        pytest.skip("pyright is not installed")
    shutil.copy(ROOT / "tests/helpers/typed_consumer.py", tmp_path / "consumer.py")
    settings = {
        "typeCheckingMode": "strict",
        "reportUnnecessaryTypeIgnoreComment": "error",
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    done = subprocess.run(
        [str(pyright), "--pythonpath", sys.executable, "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_mypy_finds_the_same_errors_in_it(tmp_path):
    pytest.importorskip("mypy")
    text = (ROOT / "tests/helpers/typed_consumer.py").read_text()
    (tmp_path / "consumer.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "consumer.py"], cwd=tmp_path, capture_output=True, text=True
    )
    found = {int(line) for line in re.findall(r"^consumer.py:(\d+): error", done.stdout, re.M)}
    lines = enumerate(text.splitlines(), 1)
    assert found == {i for i, line in lines if "pyright: ignore" in line}, done.stdout


def test_the_citation_is_of_this_version():
    text = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.*)$", text, re.M)[1] == pdmd.__version__
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert stated["version"] == pdmd.__version__


def test_the_container_gets_every_file_that_it_copies():
    copied = re.findall(r"^COPY (.*) \S+$", (ROOT / "Dockerfile").read_text(), re.M)
    kept = (ROOT / ".dockerignore").read_text().split()
    for name in " ".join(copied).split():
        assert (ROOT / name).exists() and f"!{name}" in kept, name
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {stated["readme"], *stated["license-files"]} <= set(" ".join(copied).split())


def test_the_container_has_versions_and_an_extra_that_the_package_states():
    specifiers = pytest.importorskip("packaging.specifiers").SpecifierSet
    text = (ROOT / "Dockerfile").read_text()
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert re.search(r"FROM python:([\d.]+)", text)[1] in specifiers(stated["requires-python"])
    (torch,) = (line for line in stated["dependencies"] if line.startswith("torch>"))
    assert re.search(r"ARG TORCH=(\S+)", text)[1] in specifiers(torch.removeprefix("torch"))
    extras = re.search(r"'\.\[(.*)\]'", text)[1].split(",")
    assert set(extras) <= stated["optional-dependencies"].keys()
    assert set(json.loads(text.split("ENTRYPOINT")[-1])) == set(stated["scripts"])
    launcher = re.search(r"/opt/pdmd/(\S+\.sh)", text)[1]
    assert (ROOT / launcher).stat().st_mode & 0o111
