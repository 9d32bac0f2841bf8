"""Curricula: groups of phases, and the split of updates."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdmd import Joint, PhasePlan, Progressive
from pdmd.training.curriculum import split_updates

PLAN = PhasePlan.uniform(3, steps=2)


def test_progressive_trains_one_phase_after_the_other():
    assert Progressive().groups(PLAN) == [(phase,) for phase in PLAN]
    assert not Progressive().shared


@pytest.mark.parametrize("shared", [False, True])
def test_joint_trains_all_phases_together(shared):
    curriculum = Joint(shared=shared)
    assert curriculum.groups(PLAN) == [tuple(PLAN)] and curriculum.shared is shared


@given(st.integers(1, 10_000), st.lists(st.floats(0.01, 100), min_size=1, max_size=8))
def test_updates_are_split_in_proportion(total, weights):
    updates = split_updates(total, weights)
    exact = [total * weight / sum(weights) for weight in weights]
    assert all(abs(n - e) < 1 + 1e-6 or n == 1 for n, e in zip(updates, exact, strict=True))
    assert min(updates) >= 1
    if min(exact) >= 1.5:  # no phase was raised to 1
        assert sum(updates) == total


def test_a_split_depends_on_ratios_only():
    assert split_updates(80, (1, 1, 2, 4)) == split_updates(80, (10, 10, 20, 40))
    assert split_updates(80, (1, 1, 2, 4)) == [10, 10, 20, 40]


@pytest.mark.parametrize("weight", [0, -1, math.nan, math.inf])
def test_weights_that_are_not_positive_and_finite_raise(weight):
    with pytest.raises(ValueError, match=f"positive and finite, got {weight}"):
        split_updates(10, (1, weight))
