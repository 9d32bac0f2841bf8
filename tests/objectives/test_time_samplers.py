import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from pdmd import CosineVP, Disjoint, PhasePlan, RectifiedFlow
from pdmd.objectives import LogSnrTimes, UniformTimes
from pdmd.objectives.time_samplers import ShiftedTimes
from pdmd.randomness import rand
from tests.helpers.gaussians import phase_to
from tests.helpers.strategies import schedules, seeds

ends = st.floats(0.0, 0.75)
margins = st.floats(0.005, 0.1)
SAMPLERS = [UniformTimes, LogSnrTimes, ShiftedTimes]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def distance_to_uniform(u):
    """The Kolmogorov-Smirnov distance of samples to the uniform distribution on [0, 1]."""
    n = len(u)
    u, steps = u.sort().values, torch.arange(n + 1, dtype=torch.float64) / n
    return float(torch.maximum((u - steps[:-1]).abs(), (u - steps[1:]).abs()).max())


@given(schedules, ends, margins, seeds)
def test_log_snr_times_are_uniform_in_log_snr_between_the_bounds(schedule, s, margin, seed):
    """The quantile of u is the time whose log-SNR is u of the way from that of the upper bound."""
    sampler, phase = LogSnrTimes(margin), phase_to(s)
    low, high = sampler.bounds(phase)
    t = sampler(16, phase, schedule, generator(seed))
    u = rand(16, generator(seed), dtype=torch.float64)
    bottom, top = schedule.log_snr(high), schedule.log_snr(low)
    quantile = (schedule.log_snr(t) - bottom) / (top - bottom)
    torch.testing.assert_close(quantile, u, rtol=1e-7, atol=1e-7)
    assert t.dtype == torch.float64 and t.shape == (16,)


@given(ends, margins, seeds)
def test_log_snr_times_of_rectified_flow_have_their_closed_form(s, margin, seed):
    """t = 1 / (1 + exp(lambda / 2)), with lambda = 2 log((1 - t) / t) uniform."""
    sampler, phase = LogSnrTimes(margin), phase_to(s)
    low, high = torch.tensor(sampler.bounds(phase), dtype=torch.float64)
    u = rand(16, generator(seed), dtype=torch.float64)
    odds = ((1 - high) / high) ** (1 - u) * ((1 - low) / low) ** u
    t = sampler(16, phase, RectifiedFlow(), generator(seed))
    torch.testing.assert_close(t, 1 / (1 + odds), rtol=1e-12, atol=0)


@pytest.mark.parametrize("schedule", [RectifiedFlow(), CosineVP()], ids=repr)
def test_the_distribution_of_log_snr_times_has_its_closed_form(schedule):
    """P(t' < t) = (lambda(low) - lambda(t)) / (lambda(low) - lambda(high)), to 4 sigma."""
    n, sampler, phase = 20_000, LogSnrTimes(0.02), phase_to(0.25)
    low, high = sampler.bounds(phase)
    t = sampler(n, phase, schedule, generator())
    top, bottom = schedule.log_snr(low), schedule.log_snr(high)
    assert distance_to_uniform((top - schedule.log_snr(t)) / (top - bottom)) < 2 / n**0.5
    assert distance_to_uniform((t - low) / (high - low)) > 10 / n**0.5


def test_the_distribution_of_uniform_times_has_its_closed_form():
    n, sampler, phase = 20_000, UniformTimes(0.02), phase_to(0.25)
    low, high = sampler.bounds(phase)
    t = sampler(n, phase, RectifiedFlow(), generator())
    assert distance_to_uniform((t - low) / (high - low)) < 2 / n**0.5


@given(ends, margins, st.floats(0.2, 8), st.floats(0, 1))
def test_shifted_times_are_uniform_before_the_shift(s, margin, shift, u):
    """The time at u is the shift of what is u of the way between the unshifted bounds."""
    sampler, phase, flow = ShiftedTimes(margin, shift), phase_to(s), RectifiedFlow()
    low, high = (t / (shift - (shift - 1) * t) for t in sampler.bounds(phase))
    v = low + (high - low) * u
    t = sampler.from_uniform(torch.tensor([u], dtype=torch.float64), phase, flow)
    assert float(t) == pytest.approx(shift * v / (1 + (shift - 1) * v), abs=1e-12)
    assert sampler.to_uniform(float(t), phase, flow) == pytest.approx(u, abs=1e-9)


def test_a_shift_of_seven_draws_four_times_as_many_times_for_wans_noisy_network():
    """P(t > 0.875) in the second phase of Wan 2.2: 0.43 shifted, 0.11 uniform."""
    above = [
        1 - sampler.to_uniform(0.875, phase_to(0.0), RectifiedFlow())
        for sampler in (ShiftedTimes(shift=7.0), UniformTimes())
    ]
    assert above == pytest.approx([0.43, 0.109375])
    with pytest.raises(ValueError, match="shift must be positive and finite, got 0"):
        ShiftedTimes(shift=0.0)


@pytest.mark.parametrize("kind", SAMPLERS)
@given(schedule=schedules, s=ends, margin=margins, seed=seeds)
def test_times_are_within_the_margins_and_reproducible(kind, schedule, s, margin, seed):
    sampler, phase = kind(margin), phase_to(s)
    low, high = sampler.bounds(phase)
    assert low == pytest.approx(s + margin * (1 - s)) and high == pytest.approx(1 - margin)
    t = sampler(64, phase, schedule, generator(seed))
    assert low <= float(t.min()) and float(t.max()) <= high
    assert torch.equal(sampler(64, phase, schedule, generator(seed)), t)
    assert not torch.equal(sampler(64, phase, schedule, generator(seed + 1)), t)


@pytest.mark.parametrize("kind", SAMPLERS)
@given(st.integers(2, 5), st.floats(0.5, 4))
def test_times_are_within_disjoint_score_ranges(kind, phases, shift):
    for phase in PhasePlan.uniform(phases, shift=shift, score_range=Disjoint()):
        low, high = kind(0.01).bounds(phase)
        assume(low < high)
        t = kind(0.01)(64, phase, RectifiedFlow(), generator())
        assert phase.t_end < float(t.min()) and float(t.max()) <= min(phase.t_start, 0.99)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_margins_without_times_raise(kind):
    with pytest.raises(ValueError, match="Times: margin is nan"):
        kind(float("nan"))
    for margin in (0.0, 0.5):
        with pytest.raises(ValueError, match=f"time margin must be in .* got {margin}"):
            kind(margin)
    last = PhasePlan.from_timesteps([1, 0.5, 0.45, 0], score_range=Disjoint())[1]
    with pytest.raises(ValueError, match=r"phase 2: a time margin of 0.3 leaves no times"):
        kind(0.3).bounds(last)
