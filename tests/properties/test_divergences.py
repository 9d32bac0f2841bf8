import math

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

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
    CriticRatio,
    ExactRatio,
    FDivergence,
    RatioWeighted,
)
from tests.helpers.gaussians import at, coefficients, gaussian, grid, models_and_rollout
from tests.helpers.strategies import mixtures, ordered_times, schedules, seeds, teacher_of

ALL = [divergences[name]() for name in divergences if name != "batch_normalised"]
kinds = st.sampled_from(KINDS)
means, stds = st.floats(-1, 1), st.floats(0.5, 1.0)


def normal_log_prob(x, mean, std):
    square = ((x - mean) / std).square().sum(-1)
    return -0.5 * square - x.shape[-1] * (std.log() + 0.5 * math.log(2 * math.pi))


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
def test_f_averages_to_kls_to_the_mixture(m, n, v, w):
    x, cell = grid(601, half=14)
    m, n, v, w = torch.tensor([m, n, v, w], dtype=torch.float64)
    log_fake, log_real = normal_log_prob(x, m, v), normal_log_prob(x, n, w)
    log_mixture = torch.logaddexp(log_fake, log_real) - math.log(2)

    def kl(log_p, log_q):
        return float((log_p.exp() * (log_p - log_q)).sum() * cell)

    def value(divergence):
        return float((log_fake.exp() * divergence.f(log_real - log_fake)).sum() * cell)

    to_mixture = kl(log_real, log_mixture) + kl(log_fake, log_mixture)
    assert abs(value(JensenShannon()) - to_mixture) < 1e-9
    assert abs(value(SoftenedReverseKL()) - 2 * kl(log_mixture, log_real)) < 1e-9


def divergence_gradient(divergence, mean, std, a, b, real_mean, real_std):
    """d D_f / d mean_s and d D_f / d std_s, by differentiating the integral of f over x_t."""
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
    """In one dimension, integrating the step over the generator's z and the noise.

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
    models, rollout = models_and_rollout(real, fake, alpha_s * m + spread_s * z, s)
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
    models, rollout = models_and_rollout(real, fake, x_s, s)
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
    for weighting in (Normalised(), PosteriorDifference(), ExactKL()):
        outcomes = []
        for objective in (
            DistributionMatching(weighting, name="loss"),
            FDivergence(ExactRatio(real, fake), ReverseKL(), weighting, name="loss"),
            FDivergence(
                ExactRatio(real, fake), BatchNormalised(ReverseKL()), weighting, name="loss"
            ),
        ):
            generator = torch.Generator().manual_seed(seed)
            x_s = torch.randn(7, 1, generator=generator).requires_grad_(True)
            models, rollout = models_and_rollout(real, fake, x_s, s)
            loss = objective.losses(models, rollout, generator)["loss"]
            loss.backward()
            outcomes.append((loss.detach(), x_s.grad, generator.get_state()))
        for outcome in outcomes[1:]:
            assert all(torch.equal(a, b) for a, b in zip(outcomes[0], outcome, strict=True))


@settings(max_examples=20)
@given(mixtures(dims=1), mixtures(dims=1), schedules, ordered_times())
def test_the_critics_logit_minimises_the_logistic_loss_at_the_log_ratio(
    mixture, other, schedule, pair
):
    """The gradient of the population loss in a direction of the logit vanishes there."""
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
