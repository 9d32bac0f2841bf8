"""The relative error of a fake score, against closed forms."""

import pytest
import torch
from hypothesis import assume, given

from pdmd import MixtureTeacher, Prediction
from pdmd.diffusion.predictions import KINDS
from pdmd.objectives.score_matching import relative_score_error
from tests.helpers.diffused import diffused
from tests.helpers.strategies import mixtures, ordered_times, schedules, seeds, teacher_of


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [0.7, 1.0, 1.4])
def test_the_error_of_a_scaled_score_is_the_closed_form(kind, factor):
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
def test_the_exact_score_has_no_error(schedule, pair, mixture, seed):
    s, t = pair
    assume(s + 0.05 < t)
    teacher = teacher_of(mixture, schedule, "velocity")
    _, epsilon, x_t = diffused(teacher, 4000, s, t, seed)
    _, b = schedule.transition(s, t)
    predicted = float(b / schedule(t)[1]) * teacher(x_t, t).to("epsilon")
    gap = (predicted * (epsilon - predicted)).sum(1)
    relative_error = float(relative_score_error(teacher(x_t, t), epsilon, s, bins=1))
    error = float(gap.std()) / 4000**0.5 / float(predicted.square().sum(1).mean())
    assert abs(relative_error) < 5.5 * error


def test_the_excess_over_the_conditional_variance_is_the_error():
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
