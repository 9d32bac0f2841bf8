"""A distillation that is killed again and again equals one that was not interrupted."""

import multiprocessing
import os
import random
import signal
import time

import pytest
import torch

from pdmd import Student
from pdmd.cli.main import main

SETTINGS = [
    "--train.updates=40",
    "--train.fake-updates=1",
    "--train.batch-size=8",
    "--train.checkpoint-every=3",
    "--evaluate.samples=100",
    "--evaluate.teacher-steps=3",
    "--network.updates=2",
    "--network.arguments.width=256",
    "--plan.phases=3",
    "--teacher.arguments",
    *("dim", "2", "classes", "2", "modes", "2"),
    "--no-progress",
]


def distill(folder, *words):
    torch.set_num_threads(1)
    raise SystemExit(main(["distill", "mixture", "--out", str(folder), *SETTINGS, *words]))


def start(folder, *words):
    process = multiprocessing.get_context("fork").Process(target=distill, args=(folder, *words))
    process.start()
    return process


def bits(folder):
    student = Student.load(folder / "student")
    return torch.cat([value.flatten() for value in student.state_dict().values()])


def saving(folder):
    """Returns whether a save is in progress: a folder with tensors and no manifest."""
    return any(
        path.is_dir() and not (path / "manifest.json").exists()
        for path in (folder / "checkpoint").glob("phase-*")
    )


def killed(folder, rng, during_a_save, words):
    """Starts or resumes a run and kills it; returns whether that hit a save, None if it ended."""
    process = start(folder, *words)
    checkpoint = folder / "checkpoint"
    seen = set(checkpoint.glob("phase-*"))
    while process.is_alive() and not set(checkpoint.glob("phase-*")) - seen:
        time.sleep(0.001)  # until it has got further than the run before
    moment = time.monotonic() + rng.random() * 0.3
    while process.is_alive() and not (
        saving(folder) if during_a_save else time.monotonic() > moment
    ):
        time.sleep(0)
    hit = saving(folder)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return hit if process.exitcode == -signal.SIGKILL else None


def endure(tmp_path, kills, seed):
    rng = random.Random(seed)
    whole, folder = tmp_path / "whole", tmp_path / "run"
    process = start(whole)
    process.join()
    assert process.exitcode == 0
    hits, done = [], 0
    while done < kills:
        resume = (
            ["--resume"]
            if folder.exists() and any(folder.glob("checkpoint/*/manifest.json"))
            else []
        )
        if not resume and folder.exists():
            resume = ["--overwrite"]
        hit = killed(folder, rng, done % 2 == 0, resume)
        assert hit is not None, f"the run ended after {done} kills; give it more updates"
        hits.append(hit)
        done += 1
    process = start(folder, "--resume")
    process.join()
    assert process.exitcode == 0
    assert torch.equal(bits(folder), bits(whole))
    return hits


def test_a_run_killed_four_times_ends_with_the_same_bits(tmp_path):
    assert any(endure(tmp_path, 4, seed=0))


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_with_the_same_bits(tmp_path):
    assert sum(endure(tmp_path, 20, seed=1)) >= 5
