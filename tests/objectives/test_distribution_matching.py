"""The laws are in ``tests/properties``: ``test_gradients.py`` and ``test_whole_interval.py``."""

import pytest
import torch

from pdmd import RectifiedFlow
from pdmd.diffusion.solvers import posterior_mean
from pdmd.objectives import (
    DistributionMatching,
    ExactKL,
    Normalised,
    PosteriorDifference,
    UniformTimes,
    score_difference_weightings,
)
from pdmd.objectives.distribution_matching import (
    distribution_matching_gradient,
    score_difference,
)
from pdmd.randomness import randn_like
from tests.helpers.gaussians import at, gaussian, models_and_rollout


def pair(kind="velocity", schedule=None):
    return (gaussian(mean, 0.5, schedule or RectifiedFlow(), kind) for mean in (0.0, 1.0))


def test_the_gradient_of_the_loss_is_the_step():
    generator = torch.Generator().manual_seed(0)
    real, fake = pair()
    x_s = torch.randn(16, 1, generator=generator, requires_grad=True)
    models, rollout = models_and_rollout(real, fake, x_s, 0.5)
    objective = DistributionMatching(ExactKL())
    state = generator.get_state()
    loss = objective.losses(models, rollout, generator)["distribution_matching"]
    assert loss.dtype == torch.float32
    loss.backward()
    generator.set_state(state)
    t = objective.times(16, rollout.phase, RectifiedFlow(), generator)
    epsilon = torch.randn(16, 1, generator=generator)
    g = distribution_matching_gradient(models, rollout, t, epsilon, ExactKL())
    torch.testing.assert_close(x_s.grad, (g / x_s.numel()).float())


def test_the_step_is_averaged_over_timestep_samples():
    real, fake = pair()
    generator = torch.Generator().manual_seed(0)
    x_s = torch.randn(8, 1, generator=generator, requires_grad=True)
    models, rollout = models_and_rollout(real, fake, x_s, 0.5)
    state = generator.get_state()
    objective = DistributionMatching(timestep_samples=3)
    objective.losses(models, rollout, generator)["distribution_matching"].backward()
    generator.set_state(state)
    steps = []
    for _ in range(3):
        t = UniformTimes()(8, rollout.phase, RectifiedFlow(), generator)
        epsilon = randn_like(x_s, generator)
        steps.append(distribution_matching_gradient(models, rollout, t, epsilon, Normalised()))
    torch.testing.assert_close(x_s.grad, (torch.stack(steps).mean(0) / 8).float())


def test_no_gradient_reaches_teacher_or_fake_score():
    real, fake = pair()
    gains = []
    for denoiser in (real, fake):
        gain = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
        denoiser.register_forward_hook(
            lambda module, args, out, gain=gain: out.__class__(
                **{**vars(out), "value": out.value * gain}
            )
        )
        gains.append(gain)
    x_s = torch.randn(4, 1, generator=torch.Generator().manual_seed(0), requires_grad=True)
    models, rollout = models_and_rollout(real, fake, x_s, 0.5)
    losses = DistributionMatching().losses(models, rollout, torch.Generator().manual_seed(1))
    losses["distribution_matching"].backward()
    assert x_s.grad is not None and all(gain.grad is None for gain in gains)


@pytest.mark.parametrize("kinds", [("velocity", "x0"), ("score", "epsilon")])
def test_the_score_difference_is_that_of_the_scores(kinds):
    x_t, t = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None], at(0.7, 5)
    fake = gaussian(1.0, 0.5, RectifiedFlow(), kinds[0])(x_t, t)
    real = gaussian(0.0, 0.8, RectifiedFlow(), kinds[1])(x_t, t)
    torch.testing.assert_close(score_difference(fake, real), fake.to("score") - real.to("score"))


def test_weightings_scale_the_score_difference():
    """Exact KL by a, posterior difference by b^2 / a, and the latter normalised per sample."""
    real, fake = pair()
    generator = torch.Generator().manual_seed(0)
    x_s, epsilon = torch.randn(2, 5, 1, generator=generator, dtype=torch.float64)
    models, rollout = models_and_rollout(real, fake, x_s, 0.5)
    t = at(0.8, 5)
    a, b = RectifiedFlow().transition(0.5, 0.8)
    x_t = a * x_s + b * epsilon
    difference = score_difference(fake(x_t, t), real(x_t, t))
    m_real = (x_t + b**2 * real(x_t, t).to("score")) / a
    torch.testing.assert_close(posterior_mean(real(x_t, t), 0.5), m_real)
    posterior = b**2 / a * difference
    expected = {
        ExactKL: a * difference,
        PosteriorDifference: posterior,
        Normalised: posterior / ((x_s - m_real).abs() + 1e-3),
    }
    for weighting, g in expected.items():
        step = distribution_matching_gradient(models, rollout, t, epsilon, weighting())
        torch.testing.assert_close(step, g)


def test_weightings_are_registered():
    names = ("exact_kl", "posterior", "normalised")
    assert [score_difference_weightings[name] for name in names] == [
        ExactKL,
        PosteriorDifference,
        Normalised,
    ]


def test_invalid_arguments_raise():
    with pytest.raises(ValueError, match="epsilon must be at least 0, got -1"):
        Normalised(-1)
    with pytest.raises(ValueError, match="timestep_samples must be at least 1, got 0"):
        DistributionMatching(timestep_samples=0)
