import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from pdmd import RectifiedFlow
from pdmd.diffusion.predictions import KINDS
from pdmd.objectives import (
    ClampedWeighting,
    EpsilonWeighting,
    InverseVarianceWeighting,
    RatioWeighting,
    Unweighted,
    subinterval_target,
)
from pdmd.objectives.weightings import weightings
from tests.helpers.gaussians import coefficients
from tests.helpers.strategies import ordered_times, schedules

kinds = st.sampled_from(KINDS)
positive = st.floats(0.05, 20)


def times(t):
    return torch.tensor([t], dtype=torch.float64)


def variance_of_transition(schedule, s, t):
    """b^2 = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2, by its definition."""
    (alpha_s, sigma_s), (alpha_t, sigma_t) = schedule(s), schedule(t)
    return sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2


@given(schedules, kinds, ordered_times(), positive)
def test_the_clamped_weight_is_the_minimum_of_one_and_the_limit_times_b_squared(
    schedule, kind, pair, limit
):
    s, t = pair
    assume(s + 1e-3 < t)
    b_squared = variance_of_transition(schedule, s, t)
    expected = (b_squared * (1 / b_squared).clamp(0, limit)).clamp(max=1)
    weight = ClampedWeighting(limit)(s, times(t), schedule, kind)
    torch.testing.assert_close(weight, expected[None], rtol=1e-8, atol=0)
    assert weight.dtype == torch.float64


@given(schedules, kinds, ordered_times())
def test_the_ratio_is_b_squared_over_sigma_t_squared(schedule, kind, pair):
    s, t = pair
    assume(s + 1e-3 < t)
    expected = variance_of_transition(schedule, s, t) / schedule(t)[1] ** 2
    weight = RatioWeighting()(s, times(t), schedule, kind)
    torch.testing.assert_close(weight, expected[None], rtol=1e-8, atol=0)
    assert 0 < float(weight) <= 1


@given(ordered_times())
def test_the_epsilon_weight_of_rectified_flow_velocity_has_its_closed_form(pair):
    s, t = pair
    assume(s + 1e-3 < t)
    b = variance_of_transition(RectifiedFlow(), s, t).sqrt()
    expected = ((1 - t) * b / (t * ((1 - t) + t))) ** 2
    weight = EpsilonWeighting()(s, times(t), RectifiedFlow(), "velocity")
    torch.testing.assert_close(weight, expected[None], rtol=1e-8, atol=0)


@given(schedules, kinds, ordered_times(), st.floats(-3, 3), st.floats(-3, 3), st.floats(-3, 3))
def test_the_epsilon_weight_turns_residuals_of_every_kind_into_those_of_the_noise(
    schedule, kind, pair, x_t, epsilon, other
):
    """At fixed x_t, targets of two noises differ by their difference over sqrt(w)."""
    s, t = pair
    *_, a, b = coefficients(schedule, s, t)
    assume(s + 1e-2 < t and a > 1e-3 and abs(epsilon - other) > 0.1)

    def target(noise):
        noise = torch.tensor([[noise]], dtype=torch.float64)
        return subinterval_target((x_t - b * noise) / a, noise, s, times(t), schedule, kind)

    weight = EpsilonWeighting()(s, times(t), schedule, kind)
    residual = target(epsilon) - target(other)
    torch.testing.assert_close(
        (weight * residual.square()).squeeze(),
        torch.tensor((epsilon - other) ** 2, dtype=torch.float64),
        rtol=1e-5,
        atol=0,
    )


@given(schedules, kinds, ordered_times(), positive, positive)
def test_the_inverse_variance_is_that_of_the_target_for_gaussian_data(
    schedule, kind, pair, std, limit
):
    """Var(epsilon | x_t) = a^2 v_s / (a^2 v_s + b^2), and the target is affine in epsilon."""
    s, t = pair
    alpha_s, sigma_s, *_, a, b = coefficients(schedule, s, t)
    assume(s + 1e-2 < t and a > 1e-3)
    v_s = alpha_s**2 * std**2 + sigma_s**2
    of_noise = a**2 * v_s / (a**2 * v_s + b**2)
    one = torch.ones(1, 1, dtype=torch.float64)
    slope = subinterval_target(-b / a * one, one, s, times(t), schedule, kind).squeeze()
    expected = (1 / (slope**2 * of_noise)).clamp(max=limit)
    weight = InverseVarianceWeighting(std, limit)(s, times(t), schedule, kind)
    torch.testing.assert_close(weight, expected[None], rtol=1e-5, atol=0)


def test_the_inverse_variance_is_bounded_where_the_variance_vanishes():
    weight = InverseVarianceWeighting(limit=7.0)(0.5, times(1 - 1e-6), RectifiedFlow(), "score")
    assert float(weight) == 7.0


@pytest.mark.parametrize(
    "weighting",
    [ClampedWeighting(), RatioWeighting(), EpsilonWeighting(), InverseVarianceWeighting()],
    ids=repr,
)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_decrease_as_b_squared_at_the_phases_end(weighting, kind):
    s, schedule = 0.4, RectifiedFlow()
    t = torch.tensor([s + 1e-4, s + 1e-5], dtype=torch.float64)
    _, b = schedule.transition(s, t)
    far, near = weighting(s, t, schedule, kind) / b.square()
    assert float(far / near) == pytest.approx(1, rel=2e-3)


@given(schedules, kinds, ordered_times())
def test_unweighted_is_one(schedule, kind, pair):
    s, t = pair
    assert torch.equal(Unweighted()(s, times(t), schedule, kind), torch.ones_like(times(t)))


def test_weightings_are_registered():
    names = {name: type(weightings[name]()).__name__ for name in weightings}
    assert names == {
        "none": "Unweighted",
        "clamped": "ClampedWeighting",
        "ratio": "RatioWeighting",
        "epsilon": "EpsilonWeighting",
        "inverse_variance": "InverseVarianceWeighting",
    }


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_limits_that_are_not_positive_raise(value):
    with pytest.raises(ValueError, match=f"limit must be positive, got {value}"):
        ClampedWeighting(value)
    with pytest.raises(ValueError, match=f"got {value} and 100"):
        InverseVarianceWeighting(std=value)
    with pytest.raises(ValueError, match=f"got 1.0 and {value}"):
        InverseVarianceWeighting(limit=value)


@pytest.mark.parametrize("kind", KINDS)
def test_the_inverse_variance_is_finite_at_pure_noise(kind):
    weighting = InverseVarianceWeighting(std=0.5, limit=50.0)
    at_noise = weighting(0.3, times(1.0), RectifiedFlow(), kind)
    assert at_noise.isfinite().all() and 0 < at_noise <= 50
    near = weighting(0.3, times(1 - 1e-9), RectifiedFlow(), kind)
    torch.testing.assert_close(at_noise, near, rtol=1e-6, atol=0)
