"""URLs: what is read from or written to local paths alone says so at once, and writes nothing."""

import pytest

from pdmd import MixtureTeacher, MlpDenoiser, OdeExpert, PhasePlan, Student
from pdmd.cli.main import main
from pdmd.training.phase_inputs import PhaseInputBuffer
from pdmd.verification import folders
from tests.helpers.tiny_runs import TINY

URLS = ("s3://bucket/x", "memory://x", "http://host/x", "s3:/bucket/x", "reference://x", "odd://x")
WRITING = (
    ["distill", "mixture", "--out", "URL", *TINY],
    ["distill", "mixture", "--out", "run", "--train.buffer-folder", "URL"]
    + ["--train.phase-inputs=buffer", "--train.buffer-uses=2", *TINY],
    ["sample", "student", "--out", "URL"],
    ["sample", "student", "--out", "URL.png"],
    ["sample", "student", "--out", "URL.safetensors"],
    ["evaluate", "student", "--out", "URL.json"],
    ["export", "student", "URL"],
    ["export", "student", "URL", "--to", "lora"],
    ["plan", "mixture", "--json", "URL.json"],
    ["bench", "toy1d", "--out", "URL.json"],
    ["pretrain", "digits", "--out", "URL.safetensors"],
)
READING = (
    ["distill", "--resume", "URL"],
    ["distill", "URL.toml"],
    ["sample", "URL", "--out", "x.safetensors"],
    ["evaluate", "URL"],
    ["export", "URL", "folder"],
    ["plan", "URL.toml"],
    ["report", "URL"],
    ["report", "URL.json"],
)


@pytest.fixture(scope="module")
def student():
    teacher = MixtureTeacher.random(dim=2, modes=2, classes=2)
    arguments = {"dim": 2, "classes": 2, "width": 8, "depth": 1, "kind": "velocity"}
    network = MlpDenoiser(**arguments, schedule=teacher.schedule)
    return Student(
        [OdeExpert(network, phase) for phase in PhasePlan.uniform(2)],
        source={
            "teacher": "mixture",
            "arguments": {"dim": 2, "modes": 2, "classes": 2},
            "network": {"name": "mlp", "arguments": arguments},
        },
    )


@pytest.mark.parametrize("words", [*WRITING, *READING], ids=lambda words: " ".join(words)[:40])
def test_a_url_is_rejected_in_one_line_before_any_work(
    words, student, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    student.save("student")
    before = sorted(tmp_path.rglob("*"))
    for url in URLS:
        assert main([word.replace("URL", url) for word in words]) == 2, url
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("pdmd: error: ")
        assert sorted(tmp_path.rglob("*")) == before, url


def test_a_file_url_is_its_path(student, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    student.save(f"file://{tmp_path}/student")
    words = ["--n", "2", "--out", f"file://{tmp_path}/x.safetensors"]
    assert main(["sample", f"file://{tmp_path}/student", *words]) == 0
    assert main(["verify", f"file://{tmp_path}/student"]) == 0
    assert PhaseInputBuffer(folder=f"file://{tmp_path}/buffer").folder == tmp_path / "buffer"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student", "x.safetensors"]


def test_a_file_system_that_cannot_be_reached_is_one_line(monkeypatch, capsys):
    class Unreachable:
        def exists(self, path):
            raise RuntimeError("no credentials")

    monkeypatch.setattr(folders, "locate", lambda url: (Unreachable(), "bucket/x"))
    assert main(["verify", "s3://bucket/x"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "s3://bucket/x: it could not be read (RuntimeError: no credentials)" in line
