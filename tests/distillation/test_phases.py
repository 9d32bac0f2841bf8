"""The laws of plans are in ``tests/properties/test_phases.py``."""

import pytest

from pdmd import Disjoint, Nested, Phase, PhasePlan, RectifiedFlow


def test_phases_of_a_plan():
    plan = PhasePlan.from_timesteps([1, 0.8, 0.5, 0.2, 0], steps=[3, 1])
    first, second = plan
    assert first.timesteps == (1, 0.8, 0.5) and first.t_end == second.t_start == 0.2
    assert (first.number, second.number) == (1, 2)
    assert (first.index, second.index) == (0, 1)
    assert plan.nfe == 4 and len(plan) == 2 and plan[1] is second
    assert plan.timesteps == (1, 0.8, 0.5, 0.2, 0) and plan.boundaries == (1, 0.2, 0)


def test_score_ranges():
    assert Nested()(0.6, 0.2) == (0.2, 1.0)
    assert Disjoint()(0.6, 0.2) == (0.2, 0.6)


@pytest.mark.parametrize(
    ("times", "steps", "named"),
    [
        ([0.9, 0.5, 0], 1, "0.9"),
        ([1, 0.5, 0.1], 1, "0.1"),
        ([1, 0.5, 0.7, 0], 1, "0.7"),
        ([1, float("nan"), 0], 1, "nan"),
        ([1, 0.5, 0], [1, 2], r"\[1, 2\]"),
        ([1, 0.5, 0], [2, 0], "0"),
        ([1, 0.5, 0], [0.5, 1.5], "0.5"),
        ([1, 0.5, 0], [1.5, 1.2], "1.5"),
        ([1], 1, "1.0"),
    ],
)
def test_errors_state_the_invalid_value(times, steps, named):
    with pytest.raises((ValueError, TypeError), match=named):
        PhasePlan.from_timesteps(times, steps=steps)


def test_phases_that_are_not_contiguous_raise():
    a = Phase(index=0, timesteps=(1.0,), t_end=0.5, score_range=(0.5, 1.0))
    b = Phase(index=1, timesteps=(0.4,), t_end=0.0, score_range=(0.0, 1.0))
    with pytest.raises(ValueError, match="0.4"):
        PhasePlan((a, b))
    with pytest.raises(ValueError, match="score range"):
        Phase(index=0, timesteps=(1.0,), t_end=0.5, score_range=(0.4, 1.0))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (dict(timesteps=(), t_end=0.5), "phase 2 has no steps"),
        (dict(timesteps=(1.5,), t_end=0.5), "phase 2: time 1.5 is outside"),
        (dict(timesteps=(0.8, 0.9), t_end=0.5), "phase 2: times must decrease strictly"),
        (dict(timesteps=(0.8,), t_end=0.8), "got 0.8 after 0.8"),
    ],
)
def test_errors_count_phases_from_one(settings, named):
    with pytest.raises(ValueError, match=named):
        Phase(index=1, score_range=(0.5, 1.0), **settings)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (dict(phases=0), "at least 1 phase, got 0"),
        (dict(phases=10_001), "at most 10000 phases, got 10001"),
        (dict(phases=2, steps=10_000), "at most 10000 steps in total, got 20000"),
        (dict(phases=2, steps=0), "at least 1 step, got 0"),
        (dict(phases=2, steps=[1, 2, 3]), r"got 2 phases but numbers of steps for 3: \[1, 2, 3\]"),
    ],
)
def test_numbers_of_phases_and_steps_are_checked(settings, named):
    with pytest.raises(ValueError, match=named):
        PhasePlan.uniform(**settings)


def test_grids_that_do_not_divide_or_start_elsewhere_raise():
    with pytest.raises(ValueError, match="3 steps do not divide into phases of 2 each"):
        PhasePlan.from_timesteps([1, 0.6, 0.3, 0], steps=2)
    with pytest.raises(ValueError, match="requires at least one phase"):
        PhasePlan(())
    phase = Phase(index=1, timesteps=(1.0,), t_end=0.0, score_range=(0.0, 1.0))
    with pytest.raises(ValueError, match="phase 1 of the plan has index 1.*give it 0"):
        PhasePlan((phase,))


def test_a_printed_plan_states_phases_times_and_evaluations():
    plan = PhasePlan.uniform(2, steps=[1, 7])
    head, first, second, caption = str(plan).splitlines()
    assert head.split("  ")[0] == "phase" and "log-SNR" not in head
    assert first.startswith("1      1 to 0.875  ") and first.endswith("  0.875 to 1")
    assert "0.875, 0.75, 0.625, ..., 0.125" in second and second.endswith("0 to 1")
    assert caption.startswith("2 phases, 8 network evaluations per sample (NFE)")
    assert "<td>1 to 0.875</td>" in plan._repr_html_()
    assert "log-SNR" in str(plan.table(RectifiedFlow()))
    assert repr(plan).startswith("PhasePlan(phases=(Phase(index=0")
