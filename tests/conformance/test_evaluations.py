"""Checks of single evaluations: each broken teacher fails its check."""

import copy

import pytest

from pdmd import LinearVP, MixtureTeacher
from pdmd.conformance import check
from tests.helpers.broken_teachers import (
    MEANS,
    Cancelling,
    Clamping,
    Detached,
    Dropping,
    Emptying,
    FirstTime,
    Hole,
    Mixing,
    Narrow,
    NoGrad,
    Placed,
    Rounding,
    SmallTeacher,
    Widening,
    assert_fails,
    sound,
)

BROKEN = [
    ("range", Hole, "at t = 1 the prediction is not finite"),
    ("range", Narrow, "shape"),
    ("range", lambda: MixtureTeacher(**MEANS, schedule=LinearVP()), "at t = 0 the prediction"),
    ("range", Widening, "returned torch.float64, and does not take latents of this type"),
    ("deterministic", Dropping, "two evaluations"),
    ("deterministic", Clamping, "modifies its input x_t in place.*clone"),
    ("deterministic", Rounding, "modifies its input t in place"),
    ("deterministic", Emptying, r"modifies its input condition.'text'. in place"),
    ("rows", Mixing, "relative error .*, tolerance"),
    ("rows", Placed, "rows permuted"),
    ("rows", FirstTime, "relative error .*, tolerance"),
    ("input gradient", Detached, "by finite differences"),
    ("input gradient", NoGrad, "does not require grad"),
    ("precision", Cancelling, "autocast has relative error"),
]


@pytest.mark.parametrize(("name", "build", "detail"), BROKEN)
def test_a_broken_teacher_fails_its_check(name, build, detail):
    assert_fails(build(), name, detail)


def test_half_precision_has_a_wider_tolerance_and_no_finite_differences():
    teacher = SmallTeacher()
    for parameter in teacher.parameters():
        parameter.data = parameter.data.bfloat16()
    teacher.network = lambda x, t, c: sound(copy.deepcopy(teacher).float(), x, t, c).bfloat16()
    report = check(teacher, skip=["score"])
    outcomes = {o.name: o for o in report.outcomes}
    assert "no finite differences in half precision" in outcomes["input gradient"].detail
    assert outcomes["rows"].passed
