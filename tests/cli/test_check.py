"""``pdmd check`` and ``pdmd teachers``: their reports, exit codes and errors."""

import json
import sys
import textwrap
from dataclasses import fields

import pytest

from pdmd.cli.check import CheckOptions
from pdmd.cli.config import TeacherConfig
from pdmd.cli.main import main
from pdmd.conformance import CHECKS
from pdmd.teachers.base import teachers

PLUGIN = """
    import torch
    from pdmd.teachers import register
    from tests.helpers.broken_teachers import Mixing, SmallTeacher

    @register("mine")
    def mine(*, broken: bool = False):
        return Mixing() if broken else SmallTeacher()

    @register("folder_teacher")
    def folder_teacher(folder):
        return SmallTeacher()
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    (tmp_path / "own_teachers_here.py").write_text(textwrap.dedent(PLUGIN))
    monkeypatch.syspath_prepend(tmp_path)
    yield ["--plugins", "own_teachers_here"]
    for name in ("mine", "folder_teacher"):
        if name in teachers:
            teachers.remove(name)
    sys.modules.pop("own_teachers_here", None)


def test_check_reports_a_custom_teacher(plugin, capsys):
    assert main(["check", "mine", *plugin]) == 0
    out = capsys.readouterr().out.strip().splitlines()
    assert len(out) == len(CHECKS) + 1
    assert out[-1] == "mine: 13 passed, 0 failed, 3 do not apply"
    assert all(line[:4] in ("PASS", "n/a ") for line in out[:-1])
    assert main(["check", "mine", *plugin, "--arguments", "broken", "True"]) == 1
    out = capsys.readouterr().out
    assert "FAIL  rows" in out and "0 failed" not in out


def test_check_takes_guidance_schedule_and_arguments(capsys):
    words = ["--arguments", "dim", "4", "classes", "2", "--guidance", "2"]
    assert main(["check", "mixture", *words, "--schedule", "cosine", "--prompts", "1", "0"]) == 0
    assert "steps of v_prediction" in capsys.readouterr().out


def test_check_takes_all_that_describes_a_teacher():
    keys = {field.name for field in fields(TeacherConfig)} - {"name", "check_score", "buckets"}
    assert keys <= {field.name for field in fields(CheckOptions)}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "missing the teacher: see 'pdmd teachers'"),
        (["digts"], "did you mean 'digits'?"),
        (["mixture", "--arguments", "dims", "4"], "do not fit 'mixture'"),
        (["mixture", "--prompts", "99"], "prompt '99' is not a class"),
        (["mixture", "--seed", "-1"], "--seed is in"),
        (["mixture", "--schedule", "cosin"], "did you mean 'cosine'?"),
        (["mixture", "--plugins", "no_such_module"], "cannot import the plugin"),
    ],
)
def test_invalid_arguments_are_one_line_errors(words, named, capsys):
    assert main(["check", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert named in error and "\n" not in error


def test_teachers_lists_parameters_of_every_teacher(plugin, capsys):
    assert main(["teachers", *plugin]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    rows = {line.split()[0]: line for line in lines}
    assert lines[0].split() == ["name", "parameters", "predicts", "schedule", "latents", "times"]
    assert set(rows) == {"name", *teachers}
    assert rows["qwen_image"].split()[1:] == [
        "20.4B",
        "velocity",
        "RectifiedFlow",
        "16x128x128",
        "[0,",
        "1]",
    ]
    assert rows["sdxl"].split()[1:5] == ["2.6B", "epsilon", "DiscreteVP", "4x128x128"]
    assert rows["stable_diffusion"].endswith("[0.001, 1]") and "859.5M" in rows["stable_diffusion"]
    assert "35.7M" in rows["ddpm"] and "749.8M" in rows["dit"]
    assert rows["mixture"].split()[1] == "exact"
    assert rows["mine"].split()[1] == "952"
    assert (
        "not built without arguments" in rows["folder_teacher"]
        and "folder" in rows["folder_teacher"]
    )
    starts = {line.index(line.split()[2]) for line in lines if "not built" not in line}
    assert len(starts) == 1  # the columns are aligned
    assert main(["teachers", "digits"]) == 2
    assert json.dumps(capsys.readouterr().err).count("takes no more words") == 1
