"""The fake score's relative_error, and what follows it."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from pdmd import MixtureTeacher, Prediction, RectifiedFlow
from pdmd.diffusion.predictions import KINDS
from pdmd.diffusion.solvers import diffuse
from pdmd.objectives.score_matching import relative_score_error
from pdmd.training.fake_scores import AdaptiveUpdates, FixedUpdates, OneFakeScorePerExitStep
from pdmd.training.monitoring.calibration import fresh_score
from tests.helpers.strategies import mixtures, ordered_times, schedules, seeds, teacher_of


def diffused(teacher, n, s, t, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x_0 = teacher.sample(n, generator=generator).double()
    x_s = x_0
    if s:
        noise = torch.randn(x_0.shape, generator=generator, dtype=torch.float64)
        x_s = diffuse(x_0, noise, 0.0, s, teacher.schedule)
    epsilon = torch.randn(x_0.shape, generator=generator, dtype=torch.float64)
    return x_s, epsilon, diffuse(x_s, epsilon, s, t, teacher.schedule)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [0.7, 1.0, 1.4])
def test_the_lag_of_a_scaled_score_is_known(kind, factor):
    """E<e, c e*> - c^2 E|e*|^2 over c^2 E|e*|^2 is 1 / c - 1, whatever the schedule and kind."""
    teacher, s, t = MixtureTeacher(torch.zeros(1, 2), 0.8), 0.4, 0.7
    x_s, epsilon, x_t = diffused(teacher, 200_000, s, t)
    score = factor * teacher(x_t, t).to("score")
    prediction = Prediction(value=score, kind="score", x_t=x_t, t=t, schedule=teacher.schedule)
    value = prediction.to(kind)
    if kind != "score":
        prediction = Prediction(value=value, kind=kind, x_t=x_t, t=t, schedule=teacher.schedule)
    relative_error = relative_score_error(prediction, epsilon, s)
    assert relative_error.shape == (4,)
    torch.testing.assert_close(
        relative_error, torch.full((4,), 1 / factor - 1).double(), rtol=0, atol=0.03
    )


@given(schedules, ordered_times(), mixtures(), seeds)
def test_a_right_score_has_no_lag(schedule, pair, mixture, seed):
    s, t = pair
    assume(s + 0.05 < t)
    teacher = teacher_of(mixture, schedule, "velocity")
    _, epsilon, x_t = diffused(teacher, 4000, s, t, seed)
    _, b = schedule.transition(s, t)
    guess = float(b / schedule(t)[1]) * teacher(x_t, t).to("epsilon")
    gap = (guess * (epsilon - guess)).sum(1)
    relative_error = float(relative_score_error(teacher(x_t, t), epsilon, s, bins=1))
    error = float(gap.std()) / 4000**0.5 / float(guess.square().sum(1).mean())
    assert abs(relative_error) < 5.5 * error


def test_the_excess_over_the_conditional_variance_is_the_lag():
    """For a Gaussian the target's variance is known; the excess loss is the relative error's."""
    teacher, s, t, factor = MixtureTeacher(torch.zeros(1, 1), 0.8), 0.4, 0.7, 0.8
    x_s, epsilon, x_t = diffused(teacher, 400_000, s, t)
    schedule = teacher.schedule
    a, b = (float(c) for c in schedule.transition(s, t))
    variance = (a * 0.6 * 0.8) ** 2 + (a * 0.4) ** 2 + b**2
    known = 1 / b**2 - 1 / variance
    score = factor * teacher(x_t, t).to("score")
    loss = float((score + epsilon / b).square().mean())
    exact = float((score - score / factor).square().mean())
    assert loss - known == pytest.approx(exact, abs=0.01)
    prediction = Prediction(value=score, kind="score", x_t=x_t, t=t, schedule=schedule)
    relative_error = float(relative_score_error(prediction, epsilon, s, bins=1))
    assert relative_error * float(score.square().mean()) == pytest.approx(
        float((score * (score / factor - score)).mean()), abs=0.01
    )


def test_the_fresh_estimate_is_the_score_of_many_samples():
    teacher, s, t = MixtureTeacher(torch.tensor([[-1.0], [1.5]]), 0.4), 0.3, 0.6
    x_s, _, _ = diffused(teacher, 60_000, s, t)
    x_t = torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)[:, None]
    exact = teacher(x_t, t).to("score")
    torch.testing.assert_close(
        fresh_score(x_t, x_s, s, t, RectifiedFlow()), exact, rtol=0.05, atol=0.03
    )
    few = fresh_score(x_t, x_s[:50], s, t, RectifiedFlow())
    assert (few - exact).abs().mean() > 5 * (
        fresh_score(x_t, x_s, s, t, RectifiedFlow()) - exact
    ).abs().mean()


def test_fixed_updates():
    fixed = FixedUpdates(3)
    assert [fixed.more(i) for i in range(5)] == [True, True, True, False, False]
    with pytest.raises(ValueError, match="-1"):
        FixedUpdates(-1)


def made(controller, lags):
    """Returns how many updates a cycle makes when every update observes the lags."""
    done = 0
    while controller.more(done):
        controller.observe(lambda: {"relative_error": torch.tensor(lags)})
        done += 1
    return done


def test_adaptive_updates_follow_the_lag():
    controller = AdaptiveUpdates(0.05, least=1, most=5, memory=0.5)
    assert controller.relative_error == math.inf
    assert made(controller, [0.3, 0.2]) == 5
    assert made(controller, [0.3, -0.2]) == 5  # bins of different sign do not cancel
    for _ in range(6):
        count = made(controller, [0.01, -0.01])
    assert count == 1 and controller.relative_error == pytest.approx(0.01, abs=0.01)
    state = controller.state()
    again = AdaptiveUpdates(0.05, memory=0.5)
    again.restore(state)
    assert again.relative_error == controller.relative_error
    controller.on_phase_start()
    assert controller.relative_error == math.inf


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30), st.floats(0, 0.99))
def test_a_constant_lag_is_averaged_without_bias(values, memory):
    controller = AdaptiveUpdates(memory=memory)
    for _ in range(4):
        controller.observe(lambda: {"relative_error": torch.tensor(values, dtype=torch.float64)})
    expected = math.sqrt(sum(v * v for v in values) / len(values))
    assert controller.relative_error == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="0"):
        AdaptiveUpdates(0.0)
    with pytest.raises(ValueError, match="3 and 2"):
        AdaptiveUpdates(least=3, most=2)
    with pytest.raises(ValueError, match="measures its error"):
        AdaptiveUpdates().observe(dict)


def test_fixed_updates_measure_nothing():
    def measure():
        raise AssertionError("asked for")

    FixedUpdates(2).observe(measure)


def test_every_stop_has_its_score():
    from pdmd import PhasePlan

    (phase,) = PhasePlan.uniform(1, steps=3)
    scores = OneFakeScorePerExitStep()
    assert [scores.index(j) for j in range(scores.number(phase))] == [0, 1, 2]
