"""Checks of prompts, guidance and decoding: each broken teacher fails its check."""

import pytest

from pdmd import CosineVP
from pdmd.conformance import check
from pdmd.teachers import WithSchedule
from tests.helpers import tiny_families
from tests.helpers.broken_teachers import (
    BatchEncoding,
    Deaf,
    GuideFromZero,
    IgnoredMask,
    NoNull,
    OneRow,
    OtherNull,
    assert_fails,
    broken,
)

BROKEN = [
    ("conditions", BatchEncoding, "encoded alone"),
    (
        "conditions",
        lambda: broken(encode=lambda self, prompts: {"text": 0})(),
        r"encode\(\) returned \{'text': 0\}; return a TensorDict",
    ),
    ("conditions", NoNull, "raised AttributeError"),
    ("conditions", OneRow, "batch size"),
    ("conditions", OtherNull, "no condition against encode"),
    ("conditions", IgnoredMask, "encoded alone"),
    ("conditions", Deaf, "same with each other's conditions; does the network use"),
    ("guidance", GuideFromZero, r"guide\(\) at 1"),
    ("decode", lambda: broken(decode=lambda self, x: x.reshape(-1, 1, 4, 4))(), "not in"),
    ("decode", lambda: broken(decode=lambda self, x: x[:1].reshape(1, 1, 4, 4))(), "3 latents"),
]


@pytest.mark.parametrize(("name", "build", "detail"), BROKEN)
def test_a_broken_teacher_fails_its_check(name, build, detail):
    assert_fails(build(), name, detail)


def test_guidance_within_a_change_of_schedule_does_not_apply():
    teacher = tiny_families.family("qwen_image")
    report = check(WithSchedule(teacher, CosineVP(), kind="v_prediction"))
    assert report.passed
    assert {o.name: o.passed for o in report.outcomes}["guidance"] is None
