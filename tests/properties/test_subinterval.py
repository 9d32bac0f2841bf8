"""The subinterval target is unbiased, by exact conditional expectation.

For a mixture p_0, p_s is a mixture of known parameters, so E[x_s | x_t] is known; epsilon is
(x_t - a x_s) / b; and the target is affine in both. Its conditional expectation is therefore the
target at the conditional expectations, and must equal the teacher's exact prediction.
"""

import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from pdmd import Phase, RectifiedFlow, SubintervalScoreMatching, subinterval_target
from pdmd.diffusion.predictions import KINDS, combination
from pdmd.diffusion.solvers import diffuse
from pdmd.objectives import Models, Rollout, Unweighted
from pdmd.objectives.time_samplers import UniformTimes
from pdmd.randomness import randn_like
from pdmd.typing import expand
from tests.helpers.strategies import mixtures, ordered_times, schedules, seeds, teacher_of


def conditional_bias(target, mixture, schedule, kind, s, t, seed):
    """Returns the largest |E[target | x_t] - exact prediction|, relative to its scale."""
    teacher = teacher_of(mixture, schedule, kind)
    (alpha_s, sigma_s), (alpha_t, sigma_t) = schedule(s), schedule(t)
    a, b = schedule.transition(s, t)
    generator = torch.Generator().manual_seed(seed)
    means, stds = mixture["means"], mixture["stds"]
    rows = torch.randint(len(means), (5,), generator=generator)
    noise = torch.randn(5, means.shape[1], generator=generator, dtype=torch.float64)
    spread = (alpha_t**2 * stds**2 + sigma_t**2).sqrt()
    x_t = alpha_t * means[rows] + spread[rows, None] * noise

    variance_s = alpha_s**2 * stds**2 + sigma_s**2
    variance_t = a**2 * variance_s + b**2
    residual = x_t[:, None] - alpha_t * means
    log_weights = (mixture["weights"] / mixture["weights"].sum()).log()
    logits = log_weights - 0.5 * (
        residual.square().sum(-1) / variance_t + means.shape[1] * variance_t.log()
    )
    responsibility = logits.softmax(-1)[..., None]
    gain = (a * variance_s / variance_t)[:, None]
    x_s = (responsibility * (alpha_s * means + gain * residual)).sum(1)
    epsilon = (x_t - a * x_s) / b
    exact = teacher(x_t, t).value
    times = torch.full((5,), t, dtype=torch.float64)
    got = target(x_s, epsilon, s, times, schedule, kind)
    return float((got - exact).abs().max() / (1 + exact.abs().max())), float(1 / b)


def biased_target(x_s, epsilon, s, t, schedule, kind):
    return epsilon - x_s


@given(schedules, st.sampled_from(KINDS), ordered_times(), mixtures(), seeds)
def test_the_target_is_unbiased(schedule, kind, pair, mixture, seed):
    s, t = pair
    assume(s + 0.01 < t)
    bias, amplification = conditional_bias(subinterval_target, mixture, schedule, kind, s, t, seed)
    assert bias < 1e-10 * (1 + amplification**2)


@given(ordered_times(), mixtures(), seeds)
def test_the_naive_target_is_biased(pair, mixture, seed):
    s, t = pair
    assume(0.05 < s and s + 0.1 < t)
    bias, amplification = conditional_bias(
        biased_target, mixture, RectifiedFlow(), "velocity", s, t, seed
    )
    assert bias > 1e-10 * (1 + amplification**2)


def test_monte_carlo_estimates_are_unbiased():
    generator = torch.Generator().manual_seed(0)
    mixture = dict(
        means=torch.tensor([[-1.0], [0.0], [1.0], [2.0]], dtype=torch.float64),
        stds=torch.full((4,), 1e-3, dtype=torch.float64),
        weights=torch.ones(4, dtype=torch.float64),
    )
    teacher, n, s, t = teacher_of(mixture, RectifiedFlow(), "velocity"), 400_000, 0.5, 0.75
    x_0 = teacher.sample(n, generator=generator).double()
    x_s = diffuse(x_0, randn_like(x_0, generator), 0.0, s, teacher.schedule)
    epsilon = randn_like(x_s, generator)
    x_t = diffuse(x_s, epsilon, s, t, teacher.schedule)
    exact = teacher(x_t, t).value

    def z(target):
        gap = target(x_s, epsilon, s, torch.tensor(t).double(), teacher.schedule, "velocity")
        gap = gap - exact
        tests = (torch.ones_like(x_t), x_t, torch.tanh(2 * x_t), torch.cos(3 * x_t))
        return max(abs(float((gap * f).mean() / (gap * f).std())) * n**0.5 for f in tests)

    assert z(subinterval_target) < 4.5
    assert z(biased_target) > 50


@given(st.sampled_from(KINDS), st.floats(0.05, 0.95), seeds)
def test_from_clean_samples_it_is_ordinary_score_matching_to_the_bit(kind, t, seed):
    generator = torch.Generator().manual_seed(seed)
    x_0, epsilon = torch.randn(2, 4, 3, generator=generator)
    times, schedule = torch.full((4,), t, dtype=torch.float64), RectifiedFlow()
    c_x, c_eps = combination(kind, times, schedule)
    ordinary = expand(c_x, x_0) * x_0 + expand(c_eps, x_0) * epsilon
    assert torch.equal(subinterval_target(x_0, epsilon, 0.0, times, schedule, kind), ordinary)


@given(seeds)
def test_the_loss_from_clean_samples_is_ordinary_to_the_bit(seed):
    generator = torch.Generator().manual_seed(seed)
    mixture = dict(means=torch.zeros(1, 2), stds=torch.ones(1), weights=torch.ones(1))
    fake = teacher_of(mixture, RectifiedFlow(), "velocity")
    phase = Phase(index=0, timesteps=(1.0,), t_end=0.0, score_range=(0.0, 1.0))
    x_0 = torch.randn(8, 2, generator=generator)
    models = Models(real=fake, fake=fake, expert=fake)
    rollout = Rollout(x_s=x_0, condition=None, phase=phase)
    state = generator.get_state()
    loss = SubintervalScoreMatching(Unweighted()).losses(models, rollout, generator)
    generator.set_state(state)
    t = UniformTimes()(8, phase, fake.schedule, generator)
    epsilon = torch.randn(8, 2, generator=generator)
    x_t = (1 - t[:, None]).float() * x_0 + t[:, None].float() * epsilon
    ordinary = (fake(x_t, t).value - (epsilon - x_0)).square().mean()
    assert torch.equal(loss["score_matching"], ordinary)
