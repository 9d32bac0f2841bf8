import torch
from hypothesis import given
from hypothesis import strategies as st

from pdmd.diffusion.predictions import KINDS, Prediction, combination
from pdmd.diffusion.solvers import ode_step
from pdmd.typing import expand
from tests.helpers.strategies import schedules, seeds

kinds = st.sampled_from(KINDS)
inner = st.floats(0.01, 0.98)


def case(schedule, t, seed, dim=3):
    generator = torch.Generator().manual_seed(seed)
    x0, epsilon = torch.randn(2, 4, dim, generator=generator, dtype=torch.float64)
    times = torch.full((4,), t, dtype=torch.float64)
    alpha_t, sigma_t = schedule(times)
    x_t = expand(alpha_t, x0) * x0 + expand(sigma_t, x0) * epsilon
    return x0, epsilon, x_t, times


@given(schedules, kinds, kinds, inner, seeds)
def test_conversions_agree_with_clean_sample_and_noise(schedule, kind, other, t, seed):
    x0, epsilon, x_t, times = case(schedule, t, seed)

    def value(k):
        c_x, c_eps = combination(k, times, schedule)
        return expand(c_x, x0) * x0 + expand(c_eps, x0) * epsilon

    prediction = Prediction(value=value(kind), kind=kind, x_t=x_t, t=times, schedule=schedule)
    scale = value(other).abs().max()
    condition = max(1.0, *(float(c.max()) for c in _amplification(schedule, times)))
    gap = (prediction.to(other) - value(other)).abs().max() / scale
    assert gap < 1e-13 * condition + 1e-12


def _amplification(schedule, times):
    alpha_t, sigma_t = schedule(times)
    ratio = sigma_t / alpha_t
    return ratio**2 + 1 / ratio**2, ratio + 1 / ratio


@given(schedules, kinds, kinds, inner, seeds)
def test_conversions_round_trip(schedule, kind, other, t, seed):
    _, epsilon, x_t, times = case(schedule, t, seed)
    there = Prediction(value=epsilon, kind=kind, x_t=x_t, t=times, schedule=schedule).to(other)
    back = Prediction(value=there, kind=other, x_t=x_t, t=times, schedule=schedule).to(kind)
    condition = max(float(c.max()) for c in _amplification(schedule, times))
    assert (back - epsilon).abs().max() / epsilon.abs().max() < max(1e-9, 1e-14 * condition)


@given(schedules, kinds, inner, seeds)
def test_a_step_to_data_is_the_clean_prediction(schedule, kind, t, seed):
    x0, epsilon, x_t, times = case(schedule, t, seed)
    prediction = Prediction(value=epsilon, kind=kind, x_t=x_t, t=times, schedule=schedule)
    alpha, sigma = schedule(0.0)
    if sigma == 0 and alpha == 1:
        torch.testing.assert_close(
            ode_step(prediction, 0.0), prediction.to("x0"), rtol=1e-9, atol=0
        )
