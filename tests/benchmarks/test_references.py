"""Draws of a teacher that all runs share."""

import torch

from pdmd.benchmarks.references import reference_draws
from pdmd.teachers.mixture import MixtureTeacher


def test_draws_are_independent_and_read_back(tmp_path):
    teacher = MixtureTeacher.random(dim=4, classes=2, modes=3)
    condition, path = teacher.encode([0, 1] * 4), tmp_path / "folder" / "draws.safetensors"
    first, second = reference_draws(teacher, condition, steps=2, seed=3, path=path)
    assert first.shape == second.shape == (8, 4) and not torch.equal(first, second)
    again = reference_draws(teacher, condition, steps=9, seed=4, path=path)  # not drawn again
    assert torch.equal(again[0], first) and torch.equal(again[1], second)
