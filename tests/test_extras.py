"""The core works without the extras, and what needs one says which."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pdmd.extras import MissingExtra, require
from tests.helpers.core_alone import FEATURES

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "tomli_w": "tomli-w"}
BROUGHT = {"tokenizers": "transformers", "imageio_ffmpeg": "imageio"}
"""Packages that another one of the same extra brings."""
FEATURES_OF = {
    "train": ("torchtitan", "parallel.torchtitan"),
    "diffusers": ("teachers.get", "from_config"),
    "report": (
        *("pdmd distill", "pdmd bench", "pdmd pretrain"),
        *("load_digit_images", "png", "EventFile"),
    ),
    "video": ("mp4",),
    "metrics": ("TransformersFeatures",),
    "s3": ("s3",),
    "datasets": ("parquet",),
    "quantized": ("8 bits",),
}


def distributions(requirements):
    return {re.match(r"[\w.-]+", line)[0].replace("_", "-") for line in requirements}


CORE = distributions(PROJECT["dependencies"])
EXTRAS = {k: distributions(v) for k, v in PROJECT["optional-dependencies"].items()}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("core")
    command = [sys.executable, "tests/helpers/core_alone.py", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_the_core_distills_samples_and_describes_itself_alone(found):
    assert found["imported"] == []
    assert found["distill"] == "[2, 2] True"
    assert found["digits"] == [2, 1, 8, 8]
    for command in ("--help", "distill --help", "objectives", "sample", "teachers"):
        assert found[f"pdmd {command}"].startswith("0 "), found[f"pdmd {command}"]
    listed = found["pdmd teachers"].splitlines()
    assert any(re.match(r"digits +[\d.]+k +velocity", line) for line in listed)
    (wan,) = (line for line in listed if line.startswith("wan "))
    assert wan.endswith("diffusers is not installed; run `pip install 'pdmd[diffusers]'`")


@pytest.mark.parametrize("extra", FEATURES_OF)
def test_what_needs_an_extra_names_it_in_one_line(extra, found):
    for feature in FEATURES_OF[extra]:
        text = found[feature]
        assert f"pip install 'pdmd[{extra}]'" in text and "\n" not in text, (feature, text)
        assert text.startswith(("MissingExtra: ", "ValueError: ", "2 pdmd: error: ")), text


def test_every_feature_is_tested():
    alone = {name for name in FEATURES if name not in sum(FEATURES_OF.values(), ())}
    assert alone == {
        *("distill", "digits", "pdmd --help", "pdmd distill --help"),
        *("pdmd objectives", "pdmd sample", "pdmd teachers"),
    }


def imports(tree):
    """Yields the packages that a module imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module).partition(".")[0]


def requirements(tree):
    """Yields the extra and the packages of every call of ``require``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require":
            extra, *packages = (word.value for word in node.args if isinstance(word, ast.Constant))
            yield extra, packages


def test_every_import_is_of_the_core_or_required_from_an_extra_that_has_it():
    templates = ROOT / "pdmd/export/modules"  # run where diffusers is, in exported pipelines
    seen = set()
    for path in (ROOT / "pdmd").rglob("*.py"):
        if templates in path.parents:
            continue
        tree = ast.parse(path.read_text())
        required = set()
        for extra, packages in requirements(tree):
            for package in packages:
                owner = DISTRIBUTIONS.get(package) or BROUGHT.get(package, package)
                assert owner.replace("_", "-") in EXTRAS[extra], (path, extra, package)
            required.update(packages)
        foreign = set(imports(tree)) - sys.stdlib_module_names - {"pdmd"}
        core = {name for name in foreign if DISTRIBUTIONS.get(name, name) in CORE}
        assert foreign - core - required == set(), path
        seen |= foreign - core
    assert seen >= {"torchtitan", "diffusers", "matplotlib", "torchao"}


def test_all_has_every_extra_that_users_need():
    (everything,) = PROJECT["optional-dependencies"]["all"]
    listed = set(re.search(r"\[(.*)\]", everything)[1].split(","))
    services = {"wandb", "trackio"}
    assert listed == set(EXTRAS) - services - {"all", "perceptual", "test", "docs", "dev", "bench"}
    assert set(FEATURES_OF) == listed


def test_a_missing_package_is_an_error_of_both_kinds(monkeypatch):
    require("train", "torch")
    monkeypatch.setitem(sys.modules, "torchtitan", None)
    with pytest.raises(MissingExtra, match=r"torchtitan is not installed; .*, or wait$") as caught:
        require("train", "torch", "torchtitan", alternative="wait")
    assert isinstance(caught.value, ImportError) and isinstance(caught.value, ValueError)
    assert caught.value.name == "torchtitan"
