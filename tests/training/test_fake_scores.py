"""Fake scores: fixed and adaptive numbers of updates, and one score per exit step."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pdmd.training.fake_scores import AdaptiveUpdates, FixedUpdates, OneFakeScorePerExitStep


def test_fixed_updates():
    fixed = FixedUpdates(3)
    assert [fixed.more(i) for i in range(5)] == [True, True, True, False, False]
    with pytest.raises(ValueError, match="-1"):
        FixedUpdates(-1)


def updates_of(controller, errors):
    """Returns the updates of a cycle in which every update observes these errors."""
    done = 0
    while controller.more(done):
        controller.observe(lambda: {"relative_error": torch.tensor(errors)})
        done += 1
    return done


def test_adaptive_updates_follow_the_relative_error():
    controller = AdaptiveUpdates(0.05, least=1, most=5, decay=0.5)
    assert controller.relative_error == math.inf
    assert updates_of(controller, [0.3, 0.2]) == 5
    assert updates_of(controller, [0.3, -0.2]) == 5  # bins of different sign do not cancel
    for _ in range(6):
        count = updates_of(controller, [0.01, -0.01])
    assert count == 1 and controller.relative_error == pytest.approx(0.01, abs=0.01)
    state = controller.state()
    again = AdaptiveUpdates(0.05, decay=0.5)
    again.restore(state)
    assert again.relative_error == controller.relative_error
    controller.on_phase_start()
    assert controller.relative_error == math.inf


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30), st.floats(0, 0.99))
def test_a_constant_error_is_averaged_without_bias(values, decay):
    controller = AdaptiveUpdates(decay=decay)
    for _ in range(4):
        controller.observe(lambda: {"relative_error": torch.tensor(values, dtype=torch.float64)})
    expected = math.sqrt(sum(v * v for v in values) / len(values))
    assert controller.relative_error == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_invalid_settings_raise():
    with pytest.raises(ValueError, match="0"):
        AdaptiveUpdates(0.0)
    with pytest.raises(ValueError, match="3 and 2"):
        AdaptiveUpdates(least=3, most=2)
    with pytest.raises(ValueError, match="diagnostics have relative_error"):
        AdaptiveUpdates().observe(dict)


def test_fixed_updates_measure_nothing():
    def measure():
        raise AssertionError("measured")

    FixedUpdates(2).observe(measure)


def test_every_exit_step_has_its_fake_score():
    from pdmd import PhasePlan

    (phase,) = PhasePlan.uniform(1, steps=3)
    scores = OneFakeScorePerExitStep()
    assert [scores.index(j) for j in range(scores.number(phase))] == [0, 1, 2]
