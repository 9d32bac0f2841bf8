import math

import pytest
import torch
from hypothesis import given

from pdmd import CosineVP, DiscreteVP, LinearVP
from pdmd.diffusion.variance_preserving import VariancePreserving
from tests.helpers.strategies import ddpm_levels, times


@pytest.mark.parametrize("levels", [[0.9], [0.9, 0.95], [1.2, 0.5], [0.9, float("nan")]])
def test_invalid_levels_raise(levels):
    with pytest.raises(ValueError, match="alphas_cumprod"):
        DiscreteVP(levels)


def ddpm_alphas(kind, steps=1000):
    """Levels of published models, in float32 as they are shipped."""
    if kind == "cosine":
        i = torch.arange(steps + 1, dtype=torch.float64) / steps
        bar = torch.cos((i + 0.008) / 1.008 * torch.pi / 2) ** 2
        betas = (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
    elif kind == "linear":
        betas = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64)
    else:
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, steps, dtype=torch.float64) ** 2
    bar = torch.cumprod(1 - betas, 0)
    if kind == "zero_terminal":  # rescaled as in arXiv:2305.08891, Algorithm 1
        root = bar.sqrt()
        bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return bar.float()


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "cosine", "zero_terminal"])
def test_levels_are_interpolated_with_linear_ratios_at_the_ends(kind):
    bar = ddpm_alphas(kind)
    schedule, n = DiscreteVP(bar), len(bar)
    t = torch.arange(1, n + 1, dtype=torch.float64) / n
    alpha, sigma = schedule(t)
    torch.testing.assert_close(alpha.square(), bar.double(), rtol=1e-12, atol=0)
    torch.testing.assert_close(sigma.square(), 1 - bar.double(), rtol=1e-12, atol=0)
    alpha, sigma = schedule(0.0)
    assert float(alpha) == 1 and float(sigma) == 0
    first = float(((1 - bar[0].double()) / bar[0].double()).sqrt()) * n
    d_alpha, d_sigma = schedule.derivatives(torch.tensor([0.0, 0.5 / n], dtype=torch.float64))
    assert float(d_alpha[0]) == 0 and float(d_sigma[0]) == pytest.approx(first, rel=1e-9)
    alpha, sigma = schedule(0.5 / n)
    ratio = (d_sigma[1] * alpha - sigma * d_alpha[1]) / alpha.square()  # of sigma / alpha
    assert float(ratio) == pytest.approx(first, rel=1e-9)
    d_alpha, d_sigma = schedule.derivatives(1.0)
    if kind == "zero_terminal":
        last = float((bar[-2].double() / (1 - bar[-2].double())).sqrt()) * n
        assert float(schedule(1.0)[0]) == 0 and float(d_sigma) == 0
        assert float(d_alpha) == pytest.approx(-last, rel=1e-9)
    assert bool(torch.isfinite(torch.stack([d_alpha, d_sigma])).all())


@given(times)
def test_cosine_has_its_closed_form(t):
    alpha_t, sigma_t = CosineVP()(t)
    assert float(alpha_t) == pytest.approx(math.cos(math.pi * t / 2), rel=1e-12)
    assert float(sigma_t) == pytest.approx(math.sin(math.pi * t / 2), rel=1e-12)


@given(times)
def test_linear_solves_its_sde(t):
    """d alpha / dt = -beta alpha / 2 with alpha(0) = 1, beta linear in time."""
    alpha_t, _ = LinearVP(0.2, 10.0)(t)
    integral = 0.2 * t + 0.5 * 9.8 * t**2
    assert float(alpha_t) == pytest.approx(math.exp(-integral / 2), rel=1e-12)
    d_alpha, _ = LinearVP(0.2, 10.0).derivatives(t)
    assert float(d_alpha) == pytest.approx(-(0.2 + 9.8 * t) * float(alpha_t) / 2, rel=1e-12)


@pytest.mark.parametrize("schedule", [CosineVP(), LinearVP(), DiscreteVP(ddpm_levels(50, True))])
@given(t=times)
def test_the_variance_is_preserved(schedule, t):
    alpha_t, sigma_t = schedule(t)
    assert float(alpha_t**2 + sigma_t**2) == pytest.approx(1, abs=1e-12)
    assert schedule.prior_std() == pytest.approx(1)


@given(times)
def test_a_custom_schedule_implements_its_log_snr_alone(t):
    class Cosine(VariancePreserving):
        def log_snr(self, t):
            return CosineVP().log_snr(t)

    for own, cosine in zip(Cosine()(t), CosineVP()(t), strict=True):
        assert float(own) == pytest.approx(float(cosine), rel=1e-9)
    assert float(Cosine().t_from_log_snr(CosineVP().log_snr(t))) == pytest.approx(t, rel=1e-9)


@pytest.mark.parametrize("betas", [(0.0, 1.0), (2.0, 1.0), (0.1, math.inf)])
def test_invalid_noise_rates_raise(betas):
    with pytest.raises(ValueError, match="expected 0 < beta_min <= beta_max"):
        LinearVP(*betas)
