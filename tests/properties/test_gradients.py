import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from pdmd import RectifiedFlow
from pdmd.diffusion.predictions import KINDS
from pdmd.objectives import (
    ExactKL,
    Models,
    Normalised,
    PosteriorDifference,
    Rollout,
)
from pdmd.objectives.distribution_matching import distribution_matching_gradient
from tests.helpers.gaussians import gaussian, phase_to
from tests.helpers.strategies import mixtures, ordered_times, schedules, seeds, teacher_of


@given(
    schedules,
    st.sampled_from(KINDS),
    ordered_times(),
    st.floats(-2, 2),
    st.floats(-2, 2),
    st.floats(0.2, 1.5),
    st.floats(0.2, 1.5),
)
def test_exact_kl_is_the_gradient_of_the_kl_of_gaussians(schedule, kind, pair, m, n, v, w):
    """d KL / d mean and d KL / d std, through x_s = mean_s + std_s z, by exact quadrature."""
    s, t = pair
    assume(s + 0.02 < t)
    fake, real = gaussian(m, v, schedule, kind), gaussian(n, w, schedule, kind)
    (alpha_s, sigma_s), (alpha_t, sigma_t) = schedule(s), schedule(t)
    a, b = schedule.transition(s, t)
    spread_s = (alpha_s**2 * v**2 + sigma_s**2).sqrt()
    # Gauss-Hermite: exact, since the step is affine in x_s and epsilon.
    nodes = torch.tensor([-(3**0.5), 0.0, 3**0.5], dtype=torch.float64)
    weights = torch.tensor([1 / 6, 2 / 3, 1 / 6], dtype=torch.float64)
    z, e = (g.reshape(-1, 1) for g in torch.meshgrid(nodes, nodes, indexing="ij"))
    weight = (weights[:, None] * weights).reshape(-1, 1)
    x_s = alpha_s * m + spread_s * z
    rollout = Rollout(x_s=x_s, condition=None, phase=phase_to(s))
    models = Models(real=real, fake=fake, expert=fake)
    times = torch.full((9,), t, dtype=torch.float64)
    g = distribution_matching_gradient(models, rollout, times, e, ExactKL())

    mean = (alpha_s * m).clone().requires_grad_(True)
    std = spread_s.clone().requires_grad_(True)
    variance_fake = a**2 * std**2 + b**2
    variance_real = alpha_t**2 * w**2 + sigma_t**2
    kl = 0.5 * (
        (variance_real / variance_fake).log()
        + (variance_fake + (a * mean - alpha_t * n) ** 2) / variance_real
        - 1
    )
    kl.backward()
    scale = 1 + float(g.abs().max())
    assert abs(float((weight * g).sum()) - float(mean.grad)) < 1e-9 * scale
    assert abs(float((weight * g * z).sum()) - float(std.grad)) < 1e-9 * scale


@given(schedules, st.sampled_from(KINDS), ordered_times(), mixtures(), seeds)
def test_the_step_vanishes_when_fake_equals_real(schedule, kind, pair, mixture, seed):
    s, t = pair
    assume(s + 0.01 < t)
    same = teacher_of(mixture, schedule, kind)
    generator = torch.Generator().manual_seed(seed)
    x_s, epsilon = torch.randn(2, 4, mixture["means"].shape[1], generator=generator).double()
    rollout = Rollout(x_s=x_s, condition=None, phase=phase_to(s))
    models = Models(real=same, fake=same, expert=same)
    times = torch.full((4,), t, dtype=torch.float64)
    for weight in (ExactKL(), Normalised(), PosteriorDifference()):
        g = distribution_matching_gradient(models, rollout, times, epsilon, weight)
        assert torch.equal(g, torch.zeros_like(g))


@given(mixtures(), mixtures(dims=1), seeds, st.floats(0.05, 0.95))
def test_one_phase_is_dmd_to_the_bit(mixture, other, seed, t):
    dim = mixture["means"].shape[1]
    fake_mixture = {**other, "means": other["means"].repeat(1, dim)}
    real = teacher_of(mixture, RectifiedFlow(), "velocity")
    fake = teacher_of(fake_mixture, RectifiedFlow(), "velocity")
    generator = torch.Generator().manual_seed(seed)
    x, epsilon = torch.randn(2, 6, dim, generator=generator)
    times = torch.full((6,), t, dtype=torch.float64)
    rollout = Rollout(x_s=x, condition=None, phase=phase_to(0.0))
    models = Models(real=real, fake=fake, expert=fake)
    g = distribution_matching_gradient(models, rollout, times, epsilon, Normalised())

    x_t = (1 - times[:, None]).float() * x + times[:, None].float() * epsilon  # DMD, Eqs. 7-8
    x0_real, x0_fake = real(x_t, times).to("x0"), fake(x_t, times).to("x0")
    reference = (x0_fake - x0_real) / ((x - x0_real).abs().mean(1, keepdim=True) + 1e-3)
    assert torch.equal(g, reference)
