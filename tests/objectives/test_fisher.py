"""The laws of the Fisher divergence are in ``tests/properties/test_fisher.py``."""

import math

import pytest
import torch

from pdmd import MixtureTeacher, RectifiedFlow
from pdmd.diffusion.solvers import posterior_mean
from pdmd.objectives.fisher import (
    ErrorNormalised,
    FisherDivergence,
    PosteriorUnits,
    ScoreUnits,
    fisher_losses,
    fisher_weightings,
)
from tests.helpers.gaussians import at, gaussian, models_and_rollout


def test_the_loss_is_a_mean_whose_gradient_reaches_no_network():
    real = gaussian(0.0, 0.5, RectifiedFlow())
    network = torch.nn.Linear(1, 1).requires_grad_(False)

    class Fake(MixtureTeacher):
        def network(self, x_t, t, condition):
            return super().network(x_t, t, condition) + network(x_t)

    fake = Fake(torch.ones(1, 1), 0.5)
    objective = FisherDivergence()
    generator = torch.Generator().manual_seed(0)
    x_s = torch.randn(16, 1, generator=generator, requires_grad=True)
    models, rollout = models_and_rollout(real, fake, x_s, 0.5)
    state = generator.get_state()
    loss = objective.losses(models, rollout, generator)["fisher_divergence"]
    loss.backward()
    generator.set_state(state)
    t = objective.times(16, rollout.phase, RectifiedFlow(), generator)
    epsilon = torch.randn(16, 1, generator=generator)
    again = fisher_losses(models, rollout, t, epsilon, 1.2, ErrorNormalised())
    assert loss.dtype == torch.float32 and torch.equal(loss, again.mean())
    assert float(x_s.grad.abs().min()) > 0
    assert network.weight.grad is None and network.bias.grad is None


def test_invalid_arguments_raise():
    with pytest.raises(ValueError, match="alpha is nan"):
        FisherDivergence(alpha=math.nan)
    with pytest.raises(ValueError, match="floor must be positive, got 0"):
        ErrorNormalised(0)


def test_weightings_have_their_closed_forms():
    generator = torch.Generator().manual_seed(0)
    x_s, epsilon = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    teacher, s, t = gaussian([0.3, -0.2, 0.5], 0.8, RectifiedFlow()), 0.4, at(0.7, 5)
    a, b = RectifiedFlow().transition(s, 0.7)
    real = teacher(a * x_s + b * epsilon, t)
    error = (x_s - posterior_mean(real, s)).abs().mean(1, keepdim=True)
    torch.testing.assert_close(ErrorNormalised()(x_s, s, real), 1 / error)
    assert torch.equal(ErrorNormalised(1e9)(x_s, s, real), torch.full_like(error, 1e-9))
    assert float(PosteriorUnits()(x_s, s, real)) == 1
    score = ScoreUnits()(x_s, s, real)
    torch.testing.assert_close(score, (a**2 / b**4).expand_as(score))
    assert set(fisher_weightings) == {"error_normalised", "posterior", "score"}
