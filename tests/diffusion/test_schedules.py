"""The laws of schedules are in ``tests/properties/test_schedules.py``."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pdmd import CosineVP, DiscreteVP, LinearVP, RectifiedFlow, Shifted, VarianceExploding
from pdmd.diffusion.schedules import Truncated, same_process, shift_times
from tests.diffusion.test_variance_preserving import ddpm_alphas
from tests.helpers.strategies import UserSchedule, times


@given(times)
def test_rectified_flow_has_its_closed_form(t):
    schedule = RectifiedFlow()
    assert [float(c) for c in schedule(t)] == [1 - t, t]
    assert [float(d) for d in schedule.derivatives(t)] == [-1, 1]
    assert float(schedule.log_snr(t)) == pytest.approx(2 * math.log((1 - t) / t), abs=1e-12)
    a, b = schedule.transition(t / 2, t)
    assert float(a) == pytest.approx((1 - t) / (1 - t / 2))
    assert float(b) ** 2 == pytest.approx(t**2 - float(a) ** 2 * (t / 2) ** 2)


@given(st.floats(0, 0.999999), st.floats(1e-12, 1))
def test_transitions_of_rectified_flow_lose_no_digits(s, share):
    t = min(1.0, max(s + share * (1 - s), math.nextafter(s, 1)))
    a, b = (float(c) for c in RectifiedFlow().transition(s, t))
    start, end = Fraction(s), Fraction(t)
    exact_a = (1 - end) / (1 - start)
    assert abs(Fraction(a) - exact_a) <= exact_a * Fraction(1, 2**50)
    variance = end**2 - exact_a**2 * start**2
    assert abs(Fraction(b) ** 2 - variance) <= variance * Fraction(1, 2**48)


def test_variance_exploding_has_the_noise_levels_of_edm():
    """Karras et al., arXiv:2206.00364, Eq. 5, from sigma_max down to sigma_min."""
    i, n = torch.arange(18, dtype=torch.float64), 18
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    sigmas = (high + i / (n - 1) * (low - high)) ** 7
    alpha, sigma = VarianceExploding(80.0, 0.002)(1 - i / (n - 1))
    torch.testing.assert_close(sigma, sigmas)
    assert bool((alpha == 1).all())
    assert VarianceExploding(80.0).prior_std() == pytest.approx(math.hypot(80, 1))


@given(times, st.floats(0.1, 10))
def test_shifts_keep_the_ends_and_invert(t, shift):
    t = torch.tensor([0.0, t, 1.0], dtype=torch.float64)
    warped = shift_times(t, shift)
    assert warped[0] == 0 and warped[2] == 1
    torch.testing.assert_close(shift_times(warped, 1 / shift), t, rtol=1e-12, atol=0)


def test_a_truncated_schedule_ends_at_a_time_of_its_base():
    cut = Truncated(CosineVP(), 0.8)
    for t in (0.0, 0.3, 1.0):
        assert [float(c) for c in cut(t)] == [float(c) for c in CosineVP()(0.8 * t)]
    assert float(cut.t_from_log_snr(CosineVP().log_snr(0.4))) == pytest.approx(0.5)


def test_schedules_are_compared_by_their_coefficients():
    bar = ddpm_alphas("linear")
    assert same_process(DiscreteVP(bar), DiscreteVP(bar.clone()))
    assert same_process(RectifiedFlow(), Shifted(RectifiedFlow(), 1.0))
    assert not same_process(RectifiedFlow(), Shifted(RectifiedFlow(), 1.1))
    assert not same_process(LinearVP(), LinearVP(beta_max=19.9))


def test_log_snrs_outside_the_range_raise():
    schedule = VarianceExploding(80.0, 0.002)
    for value in (-2 * math.log(80) - 1, -2 * math.log(0.002) + 1, math.nan):
        with pytest.raises(ValueError, match="outside the range of this schedule"):
            schedule.t_from_log_snr(value)
    assert float(UserSchedule().t_from_log_snr(math.inf)) == 0
    assert float(UserSchedule().t_from_log_snr(-math.inf)) == 1


def test_transitions_name_the_first_invalid_pair():
    s, t = torch.tensor([0.2, 0.6]), torch.tensor([0.5, 0.5])
    with pytest.raises(ValueError, match="noisier time t > s, got s = 0.6.*, t = 0.5"):
        RectifiedFlow().transition(s, t)


def test_invalid_arguments_raise():
    for shift in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match=f"shift must be positive and finite, got {shift}"):
            Shifted(RectifiedFlow(), shift)
    with pytest.raises(ValueError, match="shift is nan; pass a number"):
        Shifted(RectifiedFlow(), math.nan)
    for t_max in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"t_max must be in .*, got {t_max}"):
            Truncated(RectifiedFlow(), t_max)
    with pytest.raises(ValueError, match="expected 0 <= sigma_min < sigma_max"):
        VarianceExploding(1.0, 2.0)
    with pytest.raises(ValueError, match="rho must be at least 1, got 0.5"):
        VarianceExploding(rho=0.5)


def test_schedules_show_their_arguments():
    assert repr(Shifted(RectifiedFlow(), 3.0)) == "Shifted(base=RectifiedFlow(), shift=3.0)"
    assert (
        repr(VarianceExploding(2.0)) == "VarianceExploding(sigma_max=2.0, sigma_min=0.0, rho=7.0)"
    )
