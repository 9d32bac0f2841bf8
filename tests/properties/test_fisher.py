import math

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pdmd import RectifiedFlow
from pdmd.diffusion.predictions import KINDS
from pdmd.diffusion.solvers import posterior_mean
from pdmd.objectives.fisher import (
    ErrorNormalised,
    PosteriorUnits,
    ScoreUnits,
    fisher_losses,
)
from tests.helpers.gaussians import at, coefficients, gaussian, grid, hermite, models_and_rollout
from tests.helpers.strategies import mixtures, ordered_times, schedules, seeds, teacher_of

kinds = st.sampled_from(KINDS)


@settings(max_examples=20)
@given(mixtures(modes=3, dims=1), schedules, kinds, ordered_times(), st.floats(-3, 3))
def test_score_projection_holds_for_any_distribution_of_x_s(mixture, schedule, kind, pair, shift):
    """E[(m_fake - x_s) u(x_t)] = 0 for a mixture and a nonlinear u."""
    s, t = pair
    assume(s + 0.02 < t)
    fake = teacher_of(mixture, schedule, kind)
    alpha_s, sigma_s, alpha_t, sigma_t, a, b = coefficients(schedule, s, t)
    nodes, cell = grid(81, half=9, dims=2)
    scale = float((alpha_t**2 + sigma_t**2).sqrt())
    total, size = 0.0, 1.0
    for mean, std, log_weight in zip(fake.means, fake.stds, fake.log_weights, strict=True):
        x_s = alpha_s * mean + (alpha_s**2 * std**2 + sigma_s**2).sqrt() * nodes[:, :1]
        x_t = a * x_s + b * nodes[:, 1:]
        residual = posterior_mean(fake(x_t, at(t, len(x_t))), s) - x_s
        u = torch.tanh(x_t / scale - shift)
        weight = torch.exp(log_weight - 0.5 * nodes.square().sum(1, keepdim=True))
        total = total + float((weight * residual * u).sum() * cell / (2 * math.pi))
        size = max(size, float(residual.abs().max()))
    assert abs(total) < 1e-6 * size


def expected_gradient(alpha, weight, schedule, kind, pair, m, n, v, w):
    """d E[L_alpha] / d (mean_s, std_s) with frozen networks, exact as the loss is quadratic."""
    s, t = pair
    alpha_s, sigma_s, *_ = coefficients(schedule, s, t)
    fake, real = gaussian(m, v, schedule, kind), gaussian(n, w, schedule, kind)
    mean = (alpha_s * m).clone().requires_grad_(True)
    std = (alpha_s**2 * v**2 + sigma_s**2).sqrt().requires_grad_(True)
    z, e, quadrature = hermite()
    models, rollout = models_and_rollout(real, fake, mean + std * z, s)
    losses = fisher_losses(models, rollout, at(t, 9), e, alpha, weight)
    (quadrature * losses).sum().backward()
    return float(mean.grad), float(std.grad)


def fisher_closed_form(schedule, pair, m, n, v, w):
    """The Fisher divergence of the diffused Gaussians and its gradient in (mean_s, std_s)."""
    s, t = pair
    alpha_s, sigma_s, alpha_t, sigma_t, a, b = coefficients(schedule, s, t)
    mean = (alpha_s * m).clone().requires_grad_(True)
    std = (alpha_s**2 * v**2 + sigma_s**2).sqrt().requires_grad_(True)
    variance, real_variance = a**2 * std**2 + b**2, alpha_t**2 * w**2 + sigma_t**2
    gap = (a * mean - alpha_t * n) / real_variance
    fisher = gap**2 + variance * (1 / variance - 1 / real_variance) ** 2
    fisher.backward()
    return float(mean.grad), float(std.grad), float(a), float(b)


wide = st.floats(0.2, 1.5)


@settings(max_examples=40)
@given(schedules, kinds, ordered_times(), st.floats(-2, 2), st.floats(-2, 2), wide, wide)
def test_at_one_half_the_gradient_is_half_the_fisher_divergences(schedule, kind, pair, m, n, v, w):
    assume(pair[0] + 0.02 < pair[1])
    of_mean, of_std, a, b = fisher_closed_form(schedule, pair, m, n, v, w)
    assume(a > 1e-4)
    for weight, unit in ((ScoreUnits(), 1.0), (PosteriorUnits(), (b**2 / a) ** 2)):
        g_mean, g_std = expected_gradient(0.5, weight, schedule, kind, pair, m, n, v, w)
        scale = 1e-8 * (1 + unit * (abs(of_mean) + abs(of_std) + 1))
        assert abs(g_mean - 0.5 * unit * of_mean) < scale
        assert abs(g_std - 0.5 * unit * of_std) < scale


@given(schedules, kinds, ordered_times(), wide, wide, st.floats(-1, 2.5))
def test_other_alphas_have_the_closed_form_of_the_docstring(schedule, kind, pair, v, w, alpha):
    """dL / d std, of the wrong sign for variance ratios above alpha / (alpha - 1)."""
    s, t = pair
    assume(s + 0.02 < t)
    alpha_s, sigma_s, alpha_t, sigma_t, a, b = coefficients(schedule, s, t)
    std = (alpha_s**2 * v**2 + sigma_s**2).sqrt()
    fake, real = a**2 * std**2 + b**2, alpha_t**2 * w**2 + sigma_t**2
    slope = (1 / real - 1 / fake) * (alpha / fake + (1 - alpha) / real)  # in the variance
    expected = float(slope * 2 * a**2 * std)
    _, g_std = expected_gradient(alpha, ScoreUnits(), schedule, kind, pair, 0.0, 0.0, v, w)
    assert abs(g_std - expected) < 1e-8 * (1 + abs(expected) + float(a / b**2))
    if alpha > 1 and fake > real * alpha / (alpha - 1) * 1.001:
        assert expected < 0  # descent widens a student that is too wide


@given(schedules, kinds, ordered_times(), mixtures(), seeds, st.floats(-1, 2))
def test_the_loss_and_its_gradient_vanish_for_equal_distributions(
    schedule, kind, pair, mixture, seed, alpha
):
    s, t = pair
    assume(s + 0.02 < t)
    same = teacher_of(mixture, schedule, kind)
    generator = torch.Generator().manual_seed(seed)
    x_s, epsilon = torch.randn(2, 5, mixture["means"].shape[1], generator=generator).double()
    x_s.requires_grad_(True)
    models, rollout = models_and_rollout(same, same, x_s, s)
    for weight in (ErrorNormalised(), PosteriorUnits()):
        losses = fisher_losses(models, rollout, at(t, 5), epsilon, alpha, weight)
        (gradient,) = torch.autograd.grad(losses.sum(), x_s)
        assert torch.equal(losses, torch.zeros_like(losses))
        assert float(gradient.abs().max()) < 1e-9


@given(mixtures(), mixtures(dims=1), kinds, seeds, st.floats(0.05, 0.95), st.floats(0, 2))
def test_one_phase_is_sid(mixture, other, kind, seed, t, alpha):
    dim = mixture["means"].shape[1]
    real = teacher_of(mixture, RectifiedFlow(), kind)
    fake = teacher_of({**other, "means": other["means"].repeat(1, dim)}, RectifiedFlow(), kind)
    generator = torch.Generator().manual_seed(seed)
    x, epsilon = torch.randn(2, 6, dim, generator=generator).double()
    x.requires_grad_(True)
    times = at(t, 6)
    models, rollout = models_and_rollout(real, fake, x, 0.0)
    ours = fisher_losses(models, rollout, times, epsilon, alpha, ErrorNormalised())
    (our_gradient,) = torch.autograd.grad(ours.sum(), x)

    x_t = (1 - t) * x + t * epsilon
    f_real, f_fake = real(x_t, times).to("x0"), fake(x_t, times).to("x0")
    gap = f_real - f_fake
    omega = 1 / (x - f_real).abs().mean(1).detach()
    sid = omega * ((1 - alpha) * gap.square() + gap * (f_fake - x)).mean(1)
    (gradient,) = torch.autograd.grad(sid.sum(), x)
    torch.testing.assert_close(ours, sid, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(our_gradient, gradient, rtol=1e-7, atol=1e-7)
