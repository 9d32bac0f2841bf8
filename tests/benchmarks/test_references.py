"""Shared draws of a teacher, and errors against them at phase boundaries."""

import pytest
import torch

from pdmd import PhasePlan, Student
from pdmd.benchmarks.references import boundary_errors, reference_draws
from pdmd.diffusion.solvers import renoise_step
from pdmd.distillation.experts import OdeExpert
from pdmd.teachers.mixture import MixtureTeacher


def test_the_error_at_a_boundary_is_one_for_the_teachers_own_samples():
    teacher = MixtureTeacher.random(dim=4, classes=1, modes=3)
    plan = PhasePlan.uniform(2)
    student = Student([OdeExpert(teacher, phase) for phase in plan])
    generator = torch.Generator().manual_seed(0)
    first, second, third = (teacher.sample(4000, generator=generator) for _ in range(3))
    exact = renoise_step(third, 0.0, 0.5, teacher.schedule, generator)
    right = boundary_errors([first, exact, third], student, (first, second), generator)
    wrong = boundary_errors([first, 1.5 * exact, third], student, (first, second), generator)
    assert list(right) == ["boundary_1"]
    assert right["boundary_1"] == pytest.approx(1, abs=0.5) and wrong["boundary_1"] > 3


def test_draws_are_independent_and_read_back(tmp_path):
    teacher = MixtureTeacher.random(dim=4, classes=2, modes=3)
    condition, path = teacher.encode([0, 1] * 4), tmp_path / "folder" / "draws.safetensors"
    first, second = reference_draws(teacher, condition, steps=2, seed=3, path=path)
    assert first.shape == second.shape == (8, 4) and not torch.equal(first, second)
    again = reference_draws(teacher, condition, steps=9, seed=4, path=path)  # not drawn again
    assert torch.equal(again[0], first) and torch.equal(again[1], second)
