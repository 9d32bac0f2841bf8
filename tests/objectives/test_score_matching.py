"""The laws of the target are in ``tests/properties/test_subinterval.py``."""

import pytest
import torch

from pdmd import MlpDenoiser, RectifiedFlow, SubintervalScoreMatching, subinterval_target
from pdmd.diffusion.predictions import KINDS
from pdmd.diffusion.solvers import diffuse
from pdmd.objectives import ClampedWeighting, TimeSampler, UniformTimes
from pdmd.objectives.score_matching import relative_score_error
from pdmd.randomness import randn_like
from pdmd.typing import expand
from tests.helpers.gaussians import at, gaussian, models_and_rollout


def target_of(x_s, epsilon, s, t, kind):
    return subinterval_target(x_s, epsilon, s, t, RectifiedFlow(), kind)


def test_targets_of_rectified_flow_have_their_closed_forms():
    generator = torch.Generator().manual_seed(0)
    x_s, epsilon = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    s, t = 0.4, 0.7
    alpha_s, sigma_s, alpha_t, sigma_t = 1 - s, s, 1 - t, t
    b = (sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2) ** 0.5
    x_0 = x_s / alpha_s - alpha_t * sigma_s**2 / (alpha_s**2 * b) * epsilon
    slope = (alpha_s**2 * sigma_t + alpha_t * sigma_s**2) / (alpha_s**2 * b)
    expected = {
        "score": -epsilon / b,
        "epsilon": sigma_t / b * epsilon,
        "x0": x_0,
        "velocity": slope * epsilon - x_s / alpha_s,
        "v_prediction": alpha_t * sigma_t / b * epsilon - sigma_t * x_0,
    }
    assert set(expected) == set(KINDS)
    for kind, value in expected.items():
        torch.testing.assert_close(target_of(x_s, epsilon, s, at(t, 4), kind), value)


def test_the_loss_is_the_weighted_squared_residual_and_trains_the_fake_score_alone():
    torch.manual_seed(0)
    real, fake = gaussian(0.0, 0.5, RectifiedFlow()), MlpDenoiser.rectified_flow(dim=1, width=8)
    generator = torch.Generator().manual_seed(0)
    x_s = torch.randn(16, 1, generator=generator, requires_grad=True)
    models, rollout = models_and_rollout(real, fake, x_s, 0.5)
    objective = SubintervalScoreMatching(ClampedWeighting(), UniformTimes(0.1))
    state = generator.get_state()
    loss = objective.losses(models, rollout, generator)["score_matching"]
    generator.set_state(state)
    t = UniformTimes(0.1)(16, rollout.phase, RectifiedFlow(), generator)
    epsilon = randn_like(x_s, generator)
    x_t = diffuse(x_s.detach(), epsilon, 0.5, t, RectifiedFlow())
    residual = fake(x_t, t).value - target_of(x_s.detach(), epsilon, 0.5, t, "velocity")
    weight = expand(ClampedWeighting()(0.5, t, RectifiedFlow(), "velocity"), x_s)
    torch.testing.assert_close(loss, (weight * residual.square()).mean())
    loss.backward()
    assert x_s.grad is None
    assert all(p.grad is not None for p in fake.parameters())


def test_another_target_is_regressed_on():
    fake = gaussian(0.0, 0.5, RectifiedFlow())
    models, rollout = models_and_rollout(fake, fake, torch.zeros(8, 1), 0.5)
    calls = []

    def target(x_s, epsilon, s, t, schedule, kind):
        calls.append((s, kind))
        return torch.zeros_like(x_s)

    objective = SubintervalScoreMatching(target=target)
    objective.losses(models, rollout, torch.Generator().manual_seed(0))
    assert calls == [(0.5, "velocity")]


class At(TimeSampler):
    """Samples one time only."""

    def from_uniform(self, u, phase, schedule):
        return at(0.7, len(u))

    def bounds(self, phase):
        return 0.7, 0.7


def test_the_relative_error_is_that_of_the_last_losses():
    """Between Gaussians it is the ratio of the variances at t, minus 1."""
    real = gaussian(0.0, 0.5, RectifiedFlow())
    objective = SubintervalScoreMatching(times=At())
    assert objective.diagnostics() == {}
    generator = torch.Generator().manual_seed(0)
    x_s = 0.5 * real.sample(20_000, generator=generator).float()
    x_s += 0.5 * torch.randn(x_s.shape, generator=generator)
    for std in (0.5, 2.0):
        fake = gaussian(0.0, std, RectifiedFlow())
        models, rollout = models_and_rollout(real, fake, x_s, 0.5)
        objective.losses(models, rollout, generator)
        error = objective.diagnostics()["relative_error"]
        expected = (0.3**2 * std**2 + 0.7**2) / (0.3**2 * 0.5**2 + 0.7**2) - 1
        assert error.shape == (4,) and not error.requires_grad
        assert float((error - expected).abs().max()) < 0.1


def test_bins_of_the_relative_error_are_at_most_the_samples():
    real = gaussian(0.0, 0.5, RectifiedFlow())
    x_t = torch.randn(2, 1, generator=torch.Generator().manual_seed(0))
    assert relative_score_error(real(x_t, at(0.7, 2)), x_t, 0.5, bins=4).shape == (2,)


def test_times_are_checked_and_the_teacher_is_not_evaluated():
    _, rollout = models_and_rollout(None, None, torch.zeros(1, 1), 0.9)
    assert SubintervalScoreMatching().time_bounds(rollout.phase) is None
    with pytest.raises(ValueError, match="time margin of 0.4 leaves no times"):
        SubintervalScoreMatching(times=UniformTimes(0.4)).time_bounds(rollout.phase)
    with pytest.raises(ValueError, match="noisier"):
        target_of(torch.zeros(1, 1), torch.zeros(1, 1), 0.5, at(0.5, 1), "x0")
