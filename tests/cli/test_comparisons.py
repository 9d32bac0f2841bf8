"""`pdmd evaluate --metrics`."""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from pdmd import OdeExpert, PhasePlan, Student
from pdmd.cli.main import main
from pdmd.teachers.base import teachers
from tests.helpers.tiny_vision import dinov2_folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A student of the digits teacher's networks with zeros as weights, and a vision network."""
    folder = tmp_path_factory.mktemp("run")
    teacher = teachers["digits"]()
    network = copy.deepcopy(teacher)
    for parameter in network.parameters():
        parameter.data.zero_()
    experts = [OdeExpert(network, phase) for phase in PhasePlan.uniform(2)]
    source = {"teacher": "digits", "arguments": {}, "guidance": [2.0]}
    student = Student(experts, encode=teacher.encode, prompts=teacher.prompts, source=source)
    student.save(folder / "student")
    dinov2_folder(folder / "dinov2")
    return folder


def words(run, *more):
    shared = ["evaluate", str(run / "student"), "--vision", str(run / "dinov2"), "--no-progress"]
    return [*shared, "--samples", "12", "--seeds", "3", "--teacher-steps", "3", *more]


def test_a_table_a_report_and_json_are_written_and_rows_kept(run, tmp_path, capsys, monkeypatch):
    chosen = ["--metrics", "diversity", "frechet", "kernel", "--folder", str(tmp_path / "x")]
    assert main(words(run, *chosen, "--out", str(tmp_path / "rows.json"))) == 0
    out, error = capsys.readouterr()
    assert "12 rows of 16 features" in out and "report.html" in out
    content = json.loads((tmp_path / "x" / "comparison.json").read_text())
    assert json.loads((tmp_path / "rows.json").read_text()) == content
    rows = {row["method"]: row for row in content["rows"]}
    assert rows["teacher"]["nfe"] == 6 and rows["student"]["nfe"] == 2
    assert rows["teacher"]["frechet"] is None and rows["student"]["frechet"] > 0
    euler = rows["teacher_euler_2"]
    (notice,) = content["notices"]  # the student's samples are noise
    assert error.count(f"pdmd: warning: {notice}\n") == 1
    for name in ("frechet", "kernel"):
        assert f"{name} {rows['student'][name]:.3g} and {euler[name]:.3g}" in notice
    assert content["protocol"]["samples"] == "4 prompts, 3 seeds each"
    (file,) = (tmp_path / "x" / "teacher_3").glob("rows_*")
    assert load_file(file)["vision"].shape == (12, 1, 16)
    page = (tmp_path / "x" / "report.html").read_text()
    assert page.count("data:image/png") == 3 and "no better than the teacher&#39;s own" in page

    def none(*arguments):
        raise AssertionError("sampled again")

    with monkeypatch.context() as patch:
        patch.setattr("pdmd.evaluation.perceptual.comparison.sample_ode", none)
        assert main(words(run, *chosen)) == 0
    assert main(words(run, *chosen, "--seed", "5")) == 2
    assert "seed = 1234, not 5" in capsys.readouterr().err
    again = json.loads((tmp_path / "x" / "comparison.json").read_text())
    assert again == content


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--metrics", "fid"], "unknown metric 'fid'"),
        (["--metrics", "diversity", "--clip", "x"], "--clip is for metrics"),
        (["--metrics", "diversity", "--seeds", "1"], "--seeds is from 2"),
        (["--metrics", "diversity", "--fps", "0"], "--fps must be positive"),
        (["--metrics", "diversity", "--vision", "EMPTY"], "can't load a vision model"),
        (["--metrics", "motion", "--vision", ""], "pdmd[perceptual]"),
    ],
)
def test_bad_input_is_one_line(run, tmp_path, capsys, monkeypatch, more, named):
    more = [str(tmp_path) if word == "EMPTY" else word for word in more]
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert main(words(run, *more)) == 2
    error = capsys.readouterr().err.strip()
    assert named in error and "\n" not in error


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_measure_what_one_process_does(run, tmp_path):
    chosen = ["--metrics", "diversity", "frechet", "kernel", "--batch", "3"]
    assert main(words(run, *chosen, "--folder", str(tmp_path / "one"))) == 0
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    ranks += ["--nproc-per-node", "2", "-m", "pdmd"]
    done = subprocess.run(
        [*ranks, *words(run, *chosen, "--folder", str(tmp_path / "two"))],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for method in ("teacher_3", "teacher_2"):
        one, two = (
            torch.cat([load_file(p)["vision"] for p in sorted((tmp_path / n / method).glob("r*"))])
            for n in ("one", "two")
        )
        assert torch.allclose(one, two, atol=1e-4)
    pages = [json.loads((tmp_path / n / "comparison.json").read_text()) for n in ("one", "two")]
    for a, b in zip(*(page["rows"] for page in pages), strict=True):
        for key in ("cosine", *(("frechet", "kernel") if a["method"] != "teacher" else ())):
            assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-3)
