"""Tiny runs of the command line, and the weights that they leave."""

import torch

from pdmd import Student
from pdmd.cli.main import main

__all__ = ["TINY", "bits", "distill"]

TINY = [
    "--train.updates=6",
    "--train.fake-updates=1",
    "--train.batch-size=8",
    "--train.checkpoint-every=2",
    "--evaluate.samples=100",
    "--evaluate.teacher-steps=3",
    "--network.updates=5",
    "--plan.phases=2",
    "--teacher.arguments",
    *("dim", "2", "classes", "2", "modes", "2"),
    "--teacher.no-check-score",
    "--no-progress",
]


def distill(folder, *words):
    """Distills a mixture in two dimensions; returns the exit code."""
    return main(["distill", "mixture", "--out", str(folder), *TINY, *words])


def bits(folder):
    """Returns all weights of a run's student as one vector."""
    return torch.cat([v.flatten() for v in Student.load(folder / "student").state_dict().values()])
