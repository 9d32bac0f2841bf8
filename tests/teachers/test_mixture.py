"""Gaussian mixtures: the closed-form score, density and samples."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pdmd import MixtureTeacher
from tests.helpers.strategies import mixtures, schedules, seeds, teacher_of


@given(schedules, mixtures(), st.floats(0.02, 0.98), seeds)
def test_the_score_is_the_gradient_of_its_density(schedule, mixture, t, seed):
    teacher = teacher_of(mixture, schedule, "score")
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, mixture["means"].shape[1], generator=generator, dtype=torch.float64)
    x.requires_grad_(True)
    (score,) = torch.autograd.grad(teacher.log_prob(x, t).sum(), x)
    torch.testing.assert_close(teacher(x, t).value, score, rtol=1e-9, atol=1e-9)


@given(schedules, mixtures(), seeds)
def test_the_density_is_evaluated_at_the_time_of_each_sample(schedule, mixture, seed):
    teacher = teacher_of(mixture, schedule, "score")
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, mixture["means"].shape[1], generator=generator, dtype=torch.float64)
    t = 0.05 + 0.9 * torch.rand(5, generator=generator, dtype=torch.float64)
    alone = torch.stack([teacher.log_prob(x[i : i + 1], t[i])[0] for i in range(5)])
    torch.testing.assert_close(teacher.log_prob(x, t), alone, rtol=1e-12, atol=1e-12)


def test_classes_restrict_the_modes():
    teacher = MixtureTeacher.random(dim=3, classes=4, modes=2)
    condition = teacher.encode([2, "2", None])
    x = torch.randn(3, 3, dtype=torch.float64)
    own = MixtureTeacher(teacher.means[4:6], 0.3)
    value = teacher(x, 0.5, condition).value
    torch.testing.assert_close(value[:2], own(x[:2], 0.5).value)
    torch.testing.assert_close(value[2:], teacher(x[2:], 0.5).value)


def test_samples_have_the_moments_of_the_mixture():
    means = torch.tensor([[2.0, 0.0], [-1.0, 1.0]])
    teacher = MixtureTeacher(means, [0.5, 1.0], weights=torch.tensor([1.0, 3.0]))
    x = teacher.sample(200_000, generator=torch.Generator().manual_seed(0)).double()
    weights = torch.tensor([0.25, 0.75]).double()
    mean = weights @ means.double()
    second = weights @ (means.double().square() + torch.tensor([[0.25], [1.0]]))
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.02)
    torch.testing.assert_close(x.square().mean(0), second, rtol=0, atol=0.04)


@pytest.mark.parametrize("prompt", [4, -1, "cat", 1.5, "", "²"])
def test_invalid_prompts_raise(prompt):
    with pytest.raises(ValueError, match="not a class from 0 to 3"):
        MixtureTeacher.random(classes=4).encode([prompt])


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (dict(means=torch.tensor([[0.0], [math.nan]])), "means must be finite"),
        (dict(stds=[0.1, 0.2, 0.3]), r"shape \(3,\)"),
        (dict(stds=math.inf), "inf"),
        (dict(weights=[1.0, math.inf]), "inf"),
    ],
)
def test_invalid_mixtures_raise(settings, named):
    with pytest.raises(ValueError, match=named):
        MixtureTeacher(**{"means": torch.zeros(2, 1), **settings})
