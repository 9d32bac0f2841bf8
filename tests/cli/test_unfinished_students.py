"""`pdmd sample` of runs that are not finished."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from pdmd.cli.main import main
from tests.cli.test_resuming import interrupt
from tests.helpers.tiny_runs import distill


def sampled(place, out, *words):
    assert main(["sample", str(place), "--out", str(out), "--n", "6", *words]) == 0
    return load_file(out)["latents"]


@pytest.mark.parametrize(
    "word",
    [
        "--train.ema=0.9",
        pytest.param("--train.ema=0", marks=pytest.mark.slow),
        pytest.param("--train.curriculum=joint", marks=pytest.mark.slow),
    ],
)
def test_the_last_checkpoint_samples_as_the_student_that_was_saved(tmp_path, word):
    assert distill(tmp_path / "run", word, "--train.updates=2") == 0
    known = sampled(tmp_path / "run", tmp_path / "a.safetensors")
    shutil.rmtree(tmp_path / "run" / "student")
    found = sampled(tmp_path / "run", tmp_path / "b.safetensors")
    torch.testing.assert_close(found, known)


def test_a_checkpoint_within_a_phase_is_continued_by_the_teacher(tmp_path, capsys, monkeypatch):
    interrupt(monkeypatch, 3)
    assert distill(tmp_path / "run") == 130
    before = sorted((tmp_path / "run").rglob("*"))
    found = sampled(tmp_path / "run", tmp_path / "a.safetensors")
    assert "of phase 1 of 2, update 3, continued by the teacher" in capsys.readouterr().out
    more = sampled(tmp_path / "run", tmp_path / "b.safetensors", "--teacher-steps", "50")
    assert found.isfinite().all() and (found - more).abs().mean() > 1e-4
    named = next((tmp_path / "run" / "checkpoint").glob("phase-*2")).name
    other = sampled(tmp_path / "run", tmp_path / "c.safetensors", "--checkpoint", named)
    assert not torch.equal(found, other)
    assert sorted((tmp_path / "run").rglob("*")) == before  # nothing is written


def test_a_run_without_a_checkpoint_is_an_error(tmp_path, capsys):
    (tmp_path / "config.toml").write_text("")
    words = ["sample", str(tmp_path), "--out", str(tmp_path / "x.safetensors")]
    assert main(words) == 2
    assert "has neither a student nor a checkpoint yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stated", "named"),
    [
        ('[teacher]\nplugins = ["ran"]\n', "plugins = 'ran'"),
        ('[teacher.arguments]\nembeddings = "s3://bucket/x"\n', "embeddings = 's3://bucket/x'"),
        ('[teacher.arguments]\ncache = "/tmp/x"\n', "cache = '/tmp/x'"),
        ('[train]\ncheckpoint_folder = "s3://b/x"\n', "checkpoint_folder = 's3://b/x'"),
    ],
)
def test_what_a_run_of_someone_else_names_is_not_used(
    tmp_path, capsys, monkeypatch, stated, named
):
    (tmp_path / "config.toml").write_text(stated)
    (tmp_path / "ran.py").write_text("raise RuntimeError('ran')")
    monkeypatch.syspath_prepend(tmp_path)
    words = ["sample", str(tmp_path), "--out", str(tmp_path / "x.safetensors")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert named in error and "--trust-source" in error
