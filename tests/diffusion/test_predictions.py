"""The laws of conversions are in ``tests/properties/test_predictions.py``."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from pdmd import LinearVP, RectifiedFlow
from pdmd.diffusion.predictions import (
    KINDS,
    Prediction,
    check_kind,
    combination,
    determinant,
)
from tests.helpers.strategies import schedules, seeds, times
from tests.properties.test_predictions import case, kinds


@given(schedules, times)
def test_coefficients_are_those_of_the_table(schedule, t):
    (alpha_t, sigma_t), (d_alpha, d_sigma) = schedule(t), schedule.derivatives(t)
    expected = {
        "x0": (1, 0),
        "epsilon": (0, 1),
        "velocity": (d_alpha, d_sigma),
        "v_prediction": (-sigma_t, alpha_t),
        "score": (0, -1 / sigma_t),
    }
    assert tuple(expected) == KINDS
    for kind, (c_x, c_eps) in expected.items():
        assert [float(c) for c in combination(kind, t, schedule)] == [float(c_x), float(c_eps)]
        value = float(alpha_t * c_eps - sigma_t * c_x)
        assert float(determinant(kind, t, schedule)) == pytest.approx(value, rel=1e-12)


def test_velocity_is_not_v_prediction():
    """They differ by their schedule's time derivative, and are equal for no schedule here."""
    t = torch.tensor([0.3], dtype=torch.float64)
    assert [float(c) for c in combination("velocity", t, RectifiedFlow())] == [-1.0, 1.0]
    assert [float(c) for c in combination("v_prediction", t, RectifiedFlow())] == [-0.3, 0.7]


@given(kinds, kinds, seeds, st.sampled_from([1e-4, 1 - 1e-4]))
def test_rectified_flow_loses_little_near_the_ends(kind, other, seed, t):
    x0, epsilon, x_t, times = case(RectifiedFlow(), t, seed)
    there = Prediction(value=x0, kind=kind, x_t=x_t, t=times, schedule=RectifiedFlow()).to(other)
    back = Prediction(value=there, kind=other, x_t=x_t, t=times, schedule=RectifiedFlow()).to(kind)
    torch.testing.assert_close(back, x0, rtol=1e-7, atol=1e-7)


def test_a_difference_changes_kind_by_the_ratio_of_determinants():
    schedule, t = LinearVP(), torch.tensor([0.4], dtype=torch.float64)
    x_t, y, z = torch.randn(3, 1, 2, generator=torch.Generator().manual_seed(0)).double()
    ours, theirs = (
        Prediction(value=v, kind="epsilon", x_t=x_t, t=t, schedule=schedule) for v in (y, z)
    )
    for kind in KINDS:
        ratio = determinant(kind, t, schedule) / determinant("epsilon", t, schedule)
        torch.testing.assert_close(ours.to(kind) - theirs.to(kind), ratio * (y - z))


def test_scores_are_finite_predictions_at_time_0():
    x_t = torch.ones(2, 1, dtype=torch.float64)
    prediction = Prediction(value=x_t, kind="score", x_t=x_t, t=0.0, schedule=RectifiedFlow())
    assert torch.equal(prediction.to("x0"), x_t)
    assert torch.equal(prediction.to("epsilon"), torch.zeros_like(x_t))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_conversions_are_in_float32_or_wider(dtype):
    x, t = torch.ones(2, 1, dtype=dtype), torch.full((2,), 0.5, dtype=torch.float64)
    prediction = Prediction(value=x, kind="velocity", x_t=x, t=t, schedule=RectifiedFlow())
    wider = torch.promote_types(dtype, torch.float32)
    assert {prediction.to(kind).dtype for kind in KINDS} == {wider}


def test_predictions_are_pytrees():
    """Sharded networks find the tensors of their outputs, and may replace them."""
    x = torch.ones(2, 1)
    prediction = Prediction(value=x, kind="x0", x_t=x, t=torch.tensor(0.5), schedule=LinearVP())
    doubled = pytree.tree_map(lambda tensor: 2 * tensor, prediction)
    assert torch.equal(doubled.value, 2 * x) and float(doubled.t) == 1
    assert doubled.kind == "x0" and doubled.schedule is prediction.schedule


def test_unknown_kinds_raise():
    x = torch.ones(2, 1)
    with pytest.raises(ValueError, match="unknown prediction kind 'v'; choose one of x0, epsilon"):
        check_kind("v")
    with pytest.raises(ValueError, match="unknown prediction kind 'eps'"):
        Prediction(value=x, kind="x0", x_t=x, t=0.5, schedule=LinearVP()).to("eps")


@pytest.mark.parametrize("other", KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_converted_in_float32_at_scalar_times_too(kind, other):
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    one, each = (
        Prediction(value=x, kind=kind, x_t=x, t=t, schedule=RectifiedFlow()).to(other)
        for t in (0.4, torch.full((2,), 0.4, dtype=torch.float64))
    )
    assert one.dtype == torch.float32
    torch.testing.assert_close(one, each, rtol=0, atol=0)
