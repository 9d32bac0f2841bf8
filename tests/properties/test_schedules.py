import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from pdmd import DiscreteVP, LinearVP, RectifiedFlow, Shifted, VarianceExploding
from tests.helpers.strategies import ordered_times, schedules, times


@given(schedules, ordered_times())
def test_log_snr_decreases_strictly(schedule, pair):
    s, t = pair
    assume(s < t)
    assert schedule.log_snr(t) < schedule.log_snr(s)


@given(schedules, times)
def test_log_snr_is_that_of_the_coefficients(schedule, t):
    alpha_t, sigma_t = schedule(t)
    torch.testing.assert_close(
        schedule.log_snr(t), 2 * torch.log(alpha_t / sigma_t), rtol=1e-9, atol=1e-9
    )


@given(schedules, times)
def test_log_snr_inverts(schedule, t):
    log_snr = schedule.log_snr(t)
    assert float(schedule.t_from_log_snr(log_snr)) == pytest.approx(t, rel=1e-9)
    again = schedule.log_snr(schedule.t_from_log_snr(log_snr))
    torch.testing.assert_close(again, log_snr, rtol=1e-9, atol=1e-9)


@given(schedules, times)
def test_derivatives_match_finite_differences(schedule, t):
    h = 1e-6
    if isinstance(schedule, DiscreteVP) or isinstance(getattr(schedule, "base", 0), DiscreteVP):
        lows, highs = schedule.log_snr(t - h), schedule.log_snr(t + h)
        middle = schedule.log_snr(t)
        assume(abs((lows - middle) - (middle - highs)) < 1e-8)  # not across a knot
    plus, minus = schedule(t + h), schedule(t - h)
    for own, a, b in zip(schedule.derivatives(t), plus, minus, strict=True):
        assert float(own) == pytest.approx(float((a - b) / (2 * h)), rel=2e-3, abs=1e-6)


@given(schedules, ordered_times(n=3))
def test_transitions_form_a_semigroup(schedule, triple):
    r, s, t = triple
    assume(r + 1e-3 < s and s + 1e-3 < t)
    (a_rs, b_rs), (a_st, b_st) = schedule.transition(r, s), schedule.transition(s, t)
    a_rt, b_rt = schedule.transition(r, t)
    torch.testing.assert_close(a_st * a_rs, a_rt, rtol=1e-9, atol=0)
    variance = a_st.square() * b_rs.square() + b_st.square()
    torch.testing.assert_close(variance, b_rt.square(), rtol=1e-9, atol=0)


@given(schedules, times, st.floats(0, 0.9))
def test_transitions_to_cleaner_times_raise(schedule, t, share):
    with pytest.raises(ValueError, match="noisier"):
        schedule.transition(t, t * share)


@pytest.mark.parametrize("schedule", [RectifiedFlow(), LinearVP(), VarianceExploding()])
@given(t=times)
def test_transition_from_clean_is_the_forward_process_to_the_bit(schedule, t):
    (a, b), (alpha_t, sigma_t) = schedule.transition(0.0, t), schedule(t)
    assert torch.equal(a, alpha_t) and torch.equal(b, sigma_t)


@given(st.floats(0.2, 9), times)
def test_shift_lowers_the_log_snr_of_rectified_flow(shift, t):
    gap = RectifiedFlow().log_snr(t) - Shifted(RectifiedFlow(), shift).log_snr(t)
    assert float(gap) == pytest.approx(2 * float(torch.tensor(shift).log()), abs=1e-6)


def _bits(pair):
    return torch.stack([value.clone() for value in pair])


@given(schedules, ordered_times(n=3))
def test_cached_transitions_are_those_of_the_current_times(schedule, triple):
    r, s, t = triple
    assume(r < s < t)
    times = torch.full((3,), t, dtype=torch.float64)
    for end in (r, s, r, r):
        fresh = schedule.transition(end, times.clone())
        assert torch.equal(_bits(schedule.transition(end, times)), _bits(fresh))
    a, _ = schedule.transition(r, times)
    before = _bits(schedule.transition(r, times))
    a.mul_(2)  # an in-place change of a result invalidates the cache
    assert torch.equal(_bits(schedule.transition(r, times)), before)
    times.fill_(s)
    again = torch.full((3,), s, dtype=torch.float64)
    assert torch.equal(_bits(schedule.transition(r, times)), _bits(schedule.transition(r, again)))
    with pytest.raises(ValueError, match="noisier"):
        schedule.transition(s, times)
