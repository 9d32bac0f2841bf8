"""Intervals between checkpoints: by updates, by time, and both."""

import pytest

from pdmd.training.checkpoints.intervals import Interval


def test_a_checkpoint_is_due_by_updates_or_by_minutes_but_not_at_a_start():
    due = {
        name: [interval.due(update, 60.0 * update) for update in range(7)]
        for name, interval in {
            "updates": Interval(updates=3),
            "minutes": Interval(minutes=4),
            "both": Interval(updates=3, minutes=4),
            "neither": Interval(),
        }.items()
    }
    assert due == {
        "updates": [False, False, False, True, False, False, True],
        "minutes": [False, False, False, False, True, True, True],
        "both": [False, False, False, True, True, True, True],
        "neither": [False] * 7,
    }
    assert not Interval(minutes=1).due(0, 10**6)


@pytest.mark.parametrize("wrong", [{"updates": -1}, {"minutes": -0.5}, {"minutes": float("nan")}])
def test_negative_intervals_are_errors(wrong):
    with pytest.raises(ValueError, match="between checkpoints must be"):
        Interval(**wrong)
