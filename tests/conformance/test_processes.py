"""Checks of schedules, steps, plans and samples: each broken teacher fails its check."""

import pytest

from pdmd import RectifiedFlow
from tests.helpers.broken_teachers import (
    MEANS,
    BadInverse,
    BadSlope,
    Reversed,
    Rising,
    SmallTeacher,
    TimeOff,
    Unclean,
    assert_fails,
)

BROKEN = [
    ("schedule", lambda: SmallTeacher(Rising()), "does not decrease"),
    ("schedule", lambda: SmallTeacher(BadInverse()), "differs from t"),
    ("schedule", lambda: SmallTeacher(BadSlope()), "derivatives differ"),
    ("oracle", lambda: SmallTeacher(BadSlope(), "velocity"), "from x_0"),
    ("oracle", lambda: SmallTeacher(Unclean()), "from x_0"),
    ("plans", lambda: SmallTeacher(time_range=(0.1, 0.9)), "t = 1, outside its range"),
    ("plans", lambda: SmallTeacher(RectifiedFlow(), "epsilon"), "no step can be taken"),
    ("samples", lambda: Reversed(**MEANS), "expected 1"),
    ("samples", lambda: TimeOff(**MEANS), "expected 1"),
]


@pytest.mark.parametrize(("name", "build", "detail"), BROKEN)
def test_a_broken_teacher_fails_its_check(name, build, detail):
    assert_fails(build(), name, detail)
