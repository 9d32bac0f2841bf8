import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pdmd import MixtureTeacher, RectifiedFlow
from pdmd.diffusion.predictions import KINDS
from pdmd.objectives import (
    DistributionMatching,
    ExactKL,
    Normalised,
    PosteriorDifference,
)
from pdmd.objectives.distribution_matching import (
    distribution_matching_gradient,
)
from pdmd.objectives.divergences import (
    BatchNormalised,
    ForwardKL,
    Jeffreys,
    JensenShannon,
    Neyman,
    ReverseKL,
    SoftenedReverseKL,
    SquaredHellinger,
    divergences,
)
from pdmd.objectives.f_divergence import (
    Bounded,
    CriticRatio,
    DensityRatio,
    ExactRatio,
    FDivergence,
    RatioWeighted,
)
from tests.helpers.games import at, coefficients, game, gaussian, grid
from tests.helpers.strategies import mixtures, ordered_times, schedules, seeds, teacher_of

ALL = [divergences[name]() for name in divergences if name != "batch_normalised"]
kinds = st.sampled_from(KINDS)
means, stds = st.floats(-1, 1), st.floats(0.5, 1.0)


def normal_log_prob(x, mean, std):
    square = ((x - mean) / std).square().sum(-1)
    return -0.5 * square - x.shape[-1] * (std.log() + 0.5 * math.log(2 * math.pi))


@pytest.mark.parametrize("divergence", ALL, ids=repr)
def test_h_is_r_squared_times_the_second_derivative_of_f(divergence):
    r = torch.logspace(-3, 3, 61, dtype=torch.float64).requires_grad_(True)
    (slope,) = torch.autograd.grad(divergence.f(r.log()).sum(), r, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), r)
    torch.testing.assert_close(divergence.h(r.log()), r**2 * curvature, rtol=1e-7, atol=1e-9)
    assert abs(float(divergence.f(torch.zeros((), dtype=torch.float64)))) < 1e-15


@given(means, means, st.floats(0.6, 1.1), st.floats(0.6, 1.1))
def test_f_averages_to_the_closed_form_between_gaussians(m, n, v, w):
    x, cell = grid(601, half=14)
    m, n, v, w = torch.tensor([m, n, v, w], dtype=torch.float64)
    log_fake = normal_log_prob(x, m, v)
    log_r = normal_log_prob(x, n, w) - log_fake

    def kl(m, v, n, w):
        return (w / v).log() + (v**2 + (m - n) ** 2) / (2 * w**2) - 0.5

    overlap = (2 * v * w / (v**2 + w**2)).sqrt() * torch.exp(-0.25 * (m - n) ** 2 / (v**2 + w**2))
    excess = 2 * w**2 - v**2  # Neyman: the integral of fake^2 / real
    assume(2 / v**2 - 1 / w**2 > 1)  # its integrand decays within the grid
    ratio = w**2 / (v * excess.sqrt()) * torch.exp((m - n) ** 2 / excess)
    for divergence, truth in (
        (ReverseKL(), kl(m, v, n, w)),
        (ForwardKL(), kl(n, w, m, v)),
        (Jeffreys(), kl(m, v, n, w) + kl(n, w, m, v)),
        (SquaredHellinger(), 1 - overlap),
        (Neyman(), ratio - 1),
    ):
        value = float((log_fake.exp() * divergence.f(log_r)).sum() * cell)
        assert abs(value - float(truth)) < 1e-9 * (1 + float(truth)), divergence


@given(st.floats(-2, 2), st.floats(-2, 2), st.floats(0.5, 1.5), st.floats(0.5, 1.5))
def test_f_averages_to_kls_to_the_mean_law(m, n, v, w):
    x, cell = grid(601, half=14)
    m, n, v, w = torch.tensor([m, n, v, w], dtype=torch.float64)
    log_fake, log_real = normal_log_prob(x, m, v), normal_log_prob(x, n, w)
    log_mean = torch.logaddexp(log_fake, log_real) - math.log(2)

    def kl(log_p, log_q):
        return float((log_p.exp() * (log_p - log_q)).sum() * cell)

    def value(divergence):
        return float((log_fake.exp() * divergence.f(log_real - log_fake)).sum() * cell)

    to_mean = kl(log_real, log_mean) + kl(log_fake, log_mean)
    assert abs(value(JensenShannon()) - to_mean) < 1e-9
    assert abs(value(SoftenedReverseKL()) - 2 * kl(log_mean, log_real)) < 1e-9


def divergence_gradient(divergence, mean, std, a, b, real_mean, real_std):
    """d D_f / d mean_s and d D_f / d std_s, by integrating f over x_t and differentiating that."""
    mean, std = mean.clone().requires_grad_(True), std.clone().requires_grad_(True)
    dims = len(mean)
    fake_std = (a**2 * std**2 + b**2).sqrt()
    center, unit = (a * mean).detach(), float(torch.maximum(fake_std, real_std).detach())
    nodes, cell = grid(1601 if dims == 1 else 129, half=16, dims=dims)
    x = center + unit * nodes
    log_fake = normal_log_prob(x, a * mean, fake_std)
    log_r = normal_log_prob(x, real_mean, real_std) - log_fake
    (log_fake.exp() * divergence.f(log_r)).sum().mul(cell * unit**dims).backward()
    return mean.grad, std.grad


@settings(max_examples=60)
@given(st.sampled_from(ALL), schedules, kinds, ordered_times(), means, means, stds, stds)
def test_the_step_is_the_gradient_of_the_divergence(divergence, schedule, kind, pair, m, n, v, w):
    """In one dimension, integrating the code's step over the generator's z and the noise.

    Neyman's divergence is infinite where the student is much wider than the teacher.
    """
    s, t = pair
    assume(s + 0.02 < t)
    alpha_s, sigma_s, alpha_t, sigma_t, a, b = coefficients(schedule, s, t)
    spread_s = (alpha_s**2 * v**2 + sigma_s**2).sqrt()
    real_std = (alpha_t**2 * w**2 + sigma_t**2).sqrt()
    assume(not isinstance(divergence, Neyman) or real_std**2 > a**2 * spread_s**2 + b**2)
    fake, real = gaussian(m, v, schedule, kind), gaussian(n, w, schedule, kind)
    nodes, cell = grid(129, half=16, dims=2)
    z, e = nodes[:, :1], nodes[:, 1:]
    models, rollout = game(real, fake, alpha_s * m + spread_s * z, s)
    step = RatioWeighted(ExactKL(), divergence, ExactRatio(real, fake))
    g = distribution_matching_gradient(models, rollout, at(t, len(z)), e, step)
    weight = (cell / (2 * math.pi)) * torch.exp(-0.5 * nodes.square().sum(1, keepdim=True))
    mean = (alpha_s * m).reshape(1)
    of_mean, of_std = divergence_gradient(divergence, mean, spread_s, a, b, alpha_t * n, real_std)
    scale = 1 + float((weight * g.abs()).sum())
    assert abs(float((weight * g).sum() - of_mean)) < 1e-7 * scale
    assert abs(float((weight * g * z).sum() - of_std)) < 1e-7 * scale


@settings(max_examples=20)
@given(st.sampled_from(ALL), schedules, ordered_times(), means, means, means, means, stds, stds)
def test_the_step_is_the_gradient_in_two_dimensions(divergence, schedule, pair, m, k, n, j, v, w):
    """The step depends on x_t alone, so z enters through its conditional mean given x_t."""
    s, t = pair
    assume(s + 0.02 < t)
    alpha_s, sigma_s, alpha_t, sigma_t, a, b = coefficients(schedule, s, t)
    assume(a > 1e-3)
    m, n = torch.tensor([m, k], dtype=torch.float64), torch.tensor([n, j], dtype=torch.float64)
    spread_s = (alpha_s**2 * v**2 + sigma_s**2).sqrt()
    spread_t = (a**2 * spread_s**2 + b**2).sqrt()
    real_std = (alpha_t**2 * w**2 + sigma_t**2).sqrt()
    assume(not isinstance(divergence, Neyman) or real_std > spread_t)
    fake, real = gaussian(m, v, schedule), gaussian(n, w, schedule)
    nodes, cell = grid(129, half=16, dims=2)
    x_s = alpha_s * m + (spread_t / a) * nodes
    models, rollout = game(real, fake, x_s, s)
    step = RatioWeighted(ExactKL(), divergence, ExactRatio(real, fake))
    g = distribution_matching_gradient(
        models, rollout, at(t, len(x_s)), torch.zeros_like(x_s), step
    )
    weight = (cell / (2 * math.pi)) * torch.exp(-0.5 * nodes.square().sum(1, keepdim=True))
    z = (a * spread_s / spread_t) * nodes
    of_mean, of_std = divergence_gradient(
        divergence, alpha_s * m, spread_s, a, b, alpha_t * n, real_std
    )
    scale = 1 + float((weight * g.abs()).sum())
    torch.testing.assert_close((weight * g).sum(0), of_mean, rtol=0, atol=1e-7 * scale)
    assert abs(float((weight * g * z).sum() - of_std)) < 1e-7 * scale


@settings(max_examples=20)
@given(schedules, kinds, st.floats(0, 0.9), mixtures(dims=1), mixtures(dims=1), seeds)
def test_reverse_kl_is_distribution_matching_to_the_bit(schedule, kind, s, mixture, other, seed):
    real, fake = teacher_of(mixture, schedule, kind), teacher_of(other, schedule, kind)
    for gap_weight in (Normalised(), PosteriorDifference(), ExactKL()):
        outcomes = []
        for objective in (
            DistributionMatching(gap_weight, name="loss"),
            FDivergence(ExactRatio(real, fake), ReverseKL(), gap_weight, name="loss"),
            FDivergence(
                ExactRatio(real, fake), BatchNormalised(ReverseKL()), gap_weight, name="loss"
            ),
        ):
            generator = torch.Generator().manual_seed(seed)
            x_s = torch.randn(7, 1, generator=generator).requires_grad_(True)
            models, rollout = game(real, fake, x_s, s)
            loss = objective.losses(models, rollout, generator)["loss"]
            loss.backward()
            outcomes.append((loss.detach(), x_s.grad, generator.get_state()))
        for outcome in outcomes[1:]:
            assert all(torch.equal(a, b) for a, b in zip(outcomes[0], outcome, strict=True))


@pytest.mark.parametrize("divergence", ALL, ids=repr)
def test_normalised_weights_have_mean_one_and_keep_their_proportions(divergence):
    log_r = torch.tensor([-3.0, -1.0, 0.0, 2.0], dtype=torch.float64)
    h, raw = BatchNormalised(divergence).h(log_r), divergence.h(log_r)
    assert abs(float(h.mean()) - 1) < 1e-14
    torch.testing.assert_close(h / h[0], raw / raw[0])
    extreme = BatchNormalised(divergence).h(1e4 * log_r)
    assert extreme.isfinite().all() and abs(float(extreme.mean()) - 1) < 1e-14


@settings(max_examples=20)
@given(mixtures(dims=1), mixtures(dims=1), schedules, ordered_times())
def test_the_critics_logit_minimises_the_logistic_loss_at_the_log_ratio(
    mixture, other, schedule, pair
):
    """The population loss is flat there in any direction, and a critic is read as its logit."""
    real = teacher_of(mixture, schedule, "velocity")
    fake = teacher_of(other, schedule, "velocity")
    t = pair[1]
    times = at(t, 2001)
    x, cell = grid(2001, half=float(8 * (1 + schedule(t)[1])))

    class Bayes(torch.nn.Module):
        def forward(self, x_t, t, condition):
            return ExactRatio(real, fake)(x_t, t, condition)

    log_r = CriticRatio(Bayes())(x, times, None)
    delta = torch.zeros((), dtype=torch.float64, requires_grad=True)
    logit = log_r + delta * torch.tanh(x[:, 0])
    p_real, p_fake = real.log_prob(x, t).exp(), fake.log_prob(x, t).exp()
    softplus = torch.nn.functional.softplus
    loss = (p_real * softplus(-logit) + p_fake * softplus(logit)).sum() * cell
    (slope,) = torch.autograd.grad(loss, delta)
    assert abs(float(slope)) < 1e-12


def test_the_exact_ratio_asks_each_sample_at_its_own_time_and_class():
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


class Given(DensityRatio):
    def __init__(self, value):
        self.value = value

    def __call__(self, x_t, t, condition):
        return self.value


def test_what_is_not_finite_is_refused_with_its_time():
    same = gaussian(0.0, 1.0, RectifiedFlow())
    models, rollout = game(same, same, torch.ones(3, 1), 0.25)

    def step(log_r, divergence=None, wrap=lambda ratio: ratio):
        divergence = divergence or JensenShannon()
        weight = RatioWeighted(ExactKL(), divergence, wrap(Given(log_r)))
        t = torch.tensor([0.5, 0.75, 0.9], dtype=torch.float64)
        return distribution_matching_gradient(models, rollout, t, torch.ones(3, 1), weight)

    with pytest.raises(ValueError, match=r"log r is inf at t = 0\.75; bound it"):
        step(torch.tensor([0.0, torch.inf, 0.0]))
    with pytest.raises(ValueError, match=r"log r is nan at t = 0\.9"):
        step(torch.tensor([0.0, 0.0, torch.nan]), wrap=Bounded)
    with pytest.raises(ValueError, match=r"h\(r\) is inf at t = 0\.5; normalise it"):
        step(torch.tensor([1000.0, 0.0, 0.0]), ForwardKL())
    with pytest.raises(ValueError, match=r"got shape \(3, 1\) from Given"):
        step(torch.zeros(3, 1))
    step(torch.tensor([0.0, torch.inf, -torch.inf]), wrap=Bounded)
    step(torch.tensor([1000.0, 0.0, 0.0]), BatchNormalised(ForwardKL()))
    with pytest.raises(ValueError, match="bound of log r must be positive, got 0"):
        Bounded(Given(torch.zeros(3)), 0)
