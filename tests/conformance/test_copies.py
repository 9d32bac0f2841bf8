"""Checks of trainable copies: each broken teacher fails its check."""

import pytest

from tests.helpers.broken_teachers import (
    DroppingInTraining,
    Frozen,
    HalfTrained,
    Hidden,
    Itself,
    OtherKind,
    OtherSchedule,
    OtherStart,
    Sharing,
    Tied,
    assert_fails,
)

BROKEN = [
    ("copy", DroppingInTraining, r"dropout\?"),
    ("copy", OtherStart, "relative error .*, tolerance"),
    ("copy", OtherKind, "the copy predicts velocity"),
    ("copy", OtherSchedule, "on LinearVP"),
    ("parameters", Itself, "shares weights with the teacher"),
    ("parameters", Frozen, "no parameter .* requires a gradient"),
    ("parameters", HalfTrained, "reaches 2 of 6"),
    ("state", Hidden, "does not depend on the registered"),
    ("state", Tied, "clone shared tensors"),
    ("state", Sharing, "shares weights with the teacher"),
]


@pytest.mark.parametrize(("name", "build", "detail"), BROKEN)
def test_a_broken_teacher_fails_its_check(name, build, detail):
    assert_fails(build(), name, detail)
