"""Inputs that broadcasting would accept or that are no times: named, with the remedy."""

import math

import numpy as np
import pytest
import torch

from pdmd import CosineVP, MixtureTeacher, RectifiedFlow
from pdmd.diffusion.predictions import KINDS, Prediction, combination
from pdmd.diffusion.solvers import diffuse, ode_step
from pdmd.objectives.score_matching import subinterval_target

SCHEDULE = RectifiedFlow()
X = torch.randn(4, 3, 2)
GOOD = {"value": X, "kind": "velocity", "x_t": X, "t": 0.5, "schedule": SCHEDULE}

SHAPES = [(1, 3, 2), (4, 1, 2), (3, 2), (4, 3, 1), (4, 3), (2, 3, 2), ()]
TIMES = [torch.rand(3), torch.rand(4, 1), torch.rand(1, 4), torch.rand(4, 3, 2), torch.rand(0)]
OUTSIDE = [-0.1, 1.1, math.nan, math.inf, -math.inf, 1000, torch.tensor([0.5, 0.5, 2.0, 0.1])]
NO_TIMES = ["0.5", None, [0.5], True, 1j, object(), np.array([0.5])]
NO_LATENTS = ["x", None, [1.0], 3, np.zeros((4, 3, 2)), X.int(), X > 0]


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_that_would_broadcast(shape):
    other = torch.randn(shape)
    for name in ("value", "x_t"):
        with pytest.raises(ValueError, match=r"shape|scalar"):
            Prediction(**{**GOOD, name: other})
    for pair in ((X, other), (other, X)):
        with pytest.raises(ValueError, match=r"shape|scalar"):
            diffuse(*pair, 0.1, 0.5, SCHEDULE)
        with pytest.raises(ValueError, match=r"shape|scalar"):
            subinterval_target(*pair, 0.1, 0.5, SCHEDULE, "velocity")


@pytest.mark.parametrize("t", TIMES)
def test_times_of_another_shape(t):
    teacher = MixtureTeacher.random(dim=2, modes=2, classes=2)
    for use in (
        lambda: Prediction(**{**GOOD, "t": t}),
        lambda: diffuse(X, X, 0.0, t, SCHEDULE),
        lambda: diffuse(X, X, t, 1.0, SCHEDULE),
        lambda: subinterval_target(X, X, 0.0, t, SCHEDULE, "x0"),
        lambda: ode_step(Prediction(**GOOD), t),
        lambda: Prediction(**GOOD).combine(t, torch.tensor(1.0)),
        lambda: teacher(torch.randn(4, 2), t),
    ):
        with pytest.raises(ValueError, match=r"has shape .* for a batch of 4; give one"):
            use()


@pytest.mark.parametrize("t", OUTSIDE)
def test_times_outside_of_the_interval(t):
    for use in (
        lambda: SCHEDULE(t),
        lambda: CosineVP().log_snr(t),
        lambda: SCHEDULE.transition(0.0, t),
        lambda: diffuse(X, X, 0.0, t, SCHEDULE),
        lambda: subinterval_target(X, X, 0.0, t, SCHEDULE, "epsilon"),
        lambda: ode_step(Prediction(**GOOD), t),
        lambda: Prediction(**{**GOOD, "t": t}).to("x0"),
        lambda: combination("velocity", t, SCHEDULE),
    ):
        with pytest.raises(ValueError, match=r"time .* is outside \[0, 1\]|is nan; pass a number"):
            use()


@pytest.mark.parametrize("t", NO_TIMES)
def test_what_is_no_time(t):
    for use in (
        lambda: SCHEDULE(t),
        lambda: SCHEDULE.transition(0.0, t),
        lambda: Prediction(**{**GOOD, "t": t}),
        lambda: diffuse(X, X, 0.0, t, SCHEDULE),
        lambda: subinterval_target(X, X, t, 0.5, SCHEDULE, "v_prediction"),
        lambda: ode_step(Prediction(**GOOD), t),
    ):
        with pytest.raises(TypeError, match=r"is a number or a tensor in \[0, 1\], got"):
            use()


@pytest.mark.parametrize("x", NO_LATENTS)
def test_what_are_no_latents(x):
    for use in (
        lambda: Prediction(**{**GOOD, "value": x}),
        lambda: Prediction(**{**GOOD, "x_t": x}),
        lambda: diffuse(x, X, 0.1, 0.5, SCHEDULE),
        lambda: diffuse(X, x, 0.1, 0.5, SCHEDULE),
        lambda: subinterval_target(X, x, 0.1, 0.5, SCHEDULE, "x0"),
    ):
        with pytest.raises(TypeError, match="tensor"):
            use()


@pytest.mark.parametrize("kind", ["x_0", "", None, 3, ["x0"], KINDS])
def test_what_is_no_kind(kind):
    with pytest.raises(ValueError, match="unknown prediction kind .*choose one of x0"):
        Prediction(**{**GOOD, "kind": kind})
    with pytest.raises(ValueError, match="unknown prediction kind"):
        Prediction(**GOOD).to(kind)


@pytest.mark.parametrize("schedule", ["rectified_flow", None, RectifiedFlow, 3])
def test_what_is_no_schedule(schedule):
    with pytest.raises(TypeError, match="schedule is a Schedule, got"):
        Prediction(**{**GOOD, "schedule": schedule})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("t", [0.5, torch.tensor(0.5), torch.full((4,), 0.5), torch.tensor([0.5])])
def test_what_belongs_together_is_taken(kind, t):
    prediction = Prediction(**{**GOOD, "kind": kind, "t": t})
    expected = Prediction(**{**GOOD, "kind": kind}).to("epsilon")
    assert torch.equal(prediction.to("epsilon"), expected)
    assert torch.equal(diffuse(X, X, 0, t, SCHEDULE), diffuse(X, X, 0.0, 0.5, SCHEDULE))
    ode_step(prediction, np.float64(0.25))
    SCHEDULE(np.float32(0.25))
