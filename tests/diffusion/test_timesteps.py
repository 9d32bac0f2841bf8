"""That cached transitions equal computed ones is in ``tests/properties/test_schedules.py``."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pdmd import Prediction, RectifiedFlow
from pdmd.diffusion.timesteps import as_times


@pytest.mark.parametrize("t", [0, 1, 0.25, torch.tensor(0.25), torch.tensor([0.0, 1.0])])
def test_times_become_float64_with_their_shape(t):
    times = as_times(t)
    assert times.dtype == torch.float64
    torch.testing.assert_close(times, torch.as_tensor(t, dtype=torch.float64))


def test_checked_float64_times_are_returned_as_they_are():
    t = torch.tensor([0.1, 0.9], dtype=torch.float64)
    assert as_times(t) is t
    assert as_times(torch.empty(0)).shape == (0,)


def test_a_number_has_one_tensor_on_every_call_until_it_is_modified():
    with torch.inference_mode():
        t = as_times(0.375)
    assert as_times(0.375) is t and not t.is_inference()
    t += 0.5
    assert as_times(0.375).item() == 0.375


def test_coefficients_at_a_number_are_computed_once(monkeypatch):
    schedule, calls = RectifiedFlow(), []
    derivatives = RectifiedFlow.derivatives
    monkeypatch.setattr(
        RectifiedFlow, "derivatives", lambda self, t: calls.append(1) or derivatives(self, t)
    )
    for _ in range(3):
        x, v = torch.randn(2, 3), torch.randn(2, 3)
        prediction = Prediction(value=v, kind="velocity", x_t=x, t=0.625, schedule=schedule)
        torch.testing.assert_close(prediction.to("x0"), x - 0.625 * v)
    assert len(calls) == 1


@given(st.floats(allow_nan=True).filter(lambda t: not 0 <= t <= 1))
def test_times_outside_raise(t):
    with pytest.raises(ValueError, match="outside"):
        RectifiedFlow()(t)


def test_times_are_checked_once_and_again_after_modification(monkeypatch):
    checks, aminmax = [], torch.aminmax
    monkeypatch.setattr(torch, "aminmax", lambda *a, **k: checks.append(1) or aminmax(*a, **k))
    t, schedule = torch.tensor([0.5, 0.7], dtype=torch.float64), RectifiedFlow()
    for _ in range(3):
        schedule(t)
        schedule.transition(0.25, t)
    assert len(checks) == 1
    t[1] = 1.5
    with pytest.raises(ValueError, match="time 1.5 is outside"):
        schedule(t)
    with pytest.raises(ValueError, match="time 1.5 is outside"):  # is not marked as checked
        schedule(t)
    with pytest.raises(ValueError, match="time 1.4 is outside"):
        schedule(2 * torch.tensor([0.5, 0.7], dtype=torch.float64))


def test_times_in_inference_mode_are_always_checked():
    with torch.inference_mode():
        t = torch.tensor([0.5], dtype=torch.float64)
        RectifiedFlow()(t)
        t += 1
        with pytest.raises(ValueError, match="time 1.5 is outside"):
            RectifiedFlow()(t)


def test_transitions_are_cached_per_schedule_and_gradient_mode():
    t = torch.tensor([0.5, 0.75], dtype=torch.float64)
    a, b = RectifiedFlow(), RectifiedFlow()
    first, second = a.transition(0.25, t), a.transition(0.25, t)
    assert first[0] is second[0] and first[1] is second[1]
    assert b.transition(0.25, t)[0] is not first[0]
    with torch.no_grad():
        without_grad = a.transition(0.25, t)
    assert a.transition(0.25, t)[0] is not without_grad[0]
    fresh = torch.tensor([0.5, 0.75], dtype=torch.float64)
    with torch.inference_mode():
        assert a.transition(0.25, t)[0] is without_grad[0]
        for times in (fresh, t.clone()):
            again = [a.transition(0.25, times)[0] for _ in range(2)]
            assert again[0] is not again[1] and torch.equal(*again)
    with torch.no_grad():
        assert not a.transition(0.25, t)[0].is_inference()
    slope = t.clone().requires_grad_(True)
    a.transition(0.25, slope)
    (grad,) = torch.autograd.grad(a.transition(0.25, slope)[0].sum(), slope)
    assert torch.allclose(grad, torch.full_like(t, -1 / 0.75))


def test_predictions_at_one_tensor_of_times_share_their_coefficients(monkeypatch):
    t, schedule = torch.tensor([0.5, 0.75], dtype=torch.float64), RectifiedFlow()
    x, calls = torch.randn(2, 3), []
    derivatives = RectifiedFlow.derivatives
    monkeypatch.setattr(
        RectifiedFlow, "derivatives", lambda self, t: calls.append(1) or derivatives(self, t)
    )
    one, other = (
        Prediction(value=torch.randn(2, 3), kind="velocity", x_t=x, t=t, schedule=schedule)
        for _ in range(2)
    )
    first, second = one.to("x0"), other.to("x0")
    assert len(calls) == 1 and not torch.equal(first, second)
    torch.testing.assert_close(first, x - t[:, None].float() * one.value)
    t -= 0.25
    torch.testing.assert_close(one.to("x0"), x - t[:, None].float() * one.value)
    assert len(calls) == 2
