"""The laws of the steps are in ``tests/properties/test_divergences.py``."""

import pytest
import torch

from pdmd import MixtureTeacher, RectifiedFlow
from pdmd.objectives.distribution_matching import ExactKL, distribution_matching_gradient
from pdmd.objectives.divergences import BatchNormalised, ForwardKL, JensenShannon
from pdmd.objectives.f_divergence import (
    Bounded,
    CriticRatio,
    DensityRatio,
    ExactRatio,
    FDivergence,
    RatioWeighted,
)
from tests.helpers.gaussians import at, gaussian, models_and_rollout


def test_the_exact_ratio_evaluates_each_sample_at_its_own_time_and_class():
    generator = torch.Generator().manual_seed(0)
    teacher = MixtureTeacher.random(dim=2, classes=2, modes=2)
    fake = MixtureTeacher(teacher.means + 0.3, labels=teacher.labels)
    x = torch.randn(6, 2, generator=generator)
    t = torch.tensor([0.2, 0.5, 0.2, 0.9, 0.5, 0.7], dtype=torch.float64)
    condition = teacher.encode([0, 1, 1, 0, 0, 1])
    together = ExactRatio(teacher, fake)(x, t, condition)
    for i in range(6):
        c, time = condition[i : i + 1], float(t[i])
        alone = teacher.log_prob(x[i : i + 1], time, c) - fake.log_prob(x[i : i + 1], time, c)
        torch.testing.assert_close(together[i : i + 1], alone)


class FixedRatio(DensityRatio):
    def __init__(self, value):
        self.value = value

    def __call__(self, x_t, t, condition):
        return self.value


def test_values_that_are_not_finite_raise_with_their_time():
    same = gaussian(0.0, 1.0, RectifiedFlow())
    models, rollout = models_and_rollout(same, same, torch.ones(3, 1), 0.25)

    def step(log_r, divergence=None, wrap=lambda ratio: ratio):
        divergence = divergence or JensenShannon()
        weighting = RatioWeighted(ExactKL(), divergence, wrap(FixedRatio(log_r)))
        t = torch.tensor([0.5, 0.75, 0.9], dtype=torch.float64)
        return distribution_matching_gradient(models, rollout, t, torch.ones(3, 1), weighting)

    with pytest.raises(ValueError, match=r"log r is inf at t = 0\.75; clamp it"):
        step(torch.tensor([0.0, torch.inf, 0.0]))
    with pytest.raises(ValueError, match=r"log r is nan at t = 0\.9"):
        step(torch.tensor([0.0, 0.0, torch.nan]), wrap=Bounded)
    with pytest.raises(ValueError, match=r"h\(r\) is inf at t = 0\.5; normalise it"):
        step(torch.tensor([1000.0, 0.0, 0.0]), ForwardKL())
    with pytest.raises(
        ValueError, match=r"with shape \(3,\), one per sample, got shape \(3, 1\) from FixedRatio"
    ):
        step(torch.zeros(3, 1))
    step(torch.tensor([0.0, torch.inf, -torch.inf]), wrap=Bounded)
    step(torch.tensor([1000.0, 0.0, 0.0]), BatchNormalised(ForwardKL()))
    with pytest.raises(ValueError, match="limit of log r must be positive, got 0"):
        Bounded(FixedRatio(torch.zeros(3)), 0)


def test_a_critics_ratio_is_its_logit_without_gradient():
    critic = torch.nn.Linear(1, 1)

    class Logit(torch.nn.Module):
        def forward(self, x_t, t, condition):
            return critic(x_t)[:, 0]

    x = torch.randn(4, 1, requires_grad=True)
    log_r = CriticRatio(Logit())(x, at(0.5, 4), None)
    assert torch.equal(log_r, critic(x)[:, 0].detach()) and not log_r.requires_grad


def test_the_objective_uses_the_rollouts_condition():
    teacher = MixtureTeacher.random(dim=2, classes=2, modes=2)
    fake = MixtureTeacher(teacher.means + 0.3, labels=teacher.labels)
    conditions = []

    class Recording(ExactRatio):
        def __call__(self, x_t, t, condition):
            conditions.append(condition)
            return super().__call__(x_t, t, condition)

    models, rollout = models_and_rollout(teacher, fake, torch.zeros(3, 2), 0.5)
    object.__setattr__(rollout, "condition", teacher.encode([0, 1, 1]))
    losses = FDivergence(Recording(teacher, fake)).losses(models, rollout, torch.Generator())
    assert set(losses) == {"f_divergence"}
    assert torch.equal(conditions[0]["label"], torch.tensor([0, 1, 1]))
