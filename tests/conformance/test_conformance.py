"""Conformance: sound teachers and families pass, and each check has a teacher that fails it."""

import copy

import pytest
import torch

from pdmd import (
    CosineVP,
    Guided,
    LinearVP,
    MixtureTeacher,
    RectifiedFlow,
    Shifted,
    VarianceExploding,
)
from pdmd.conformance import CHECKS, check
from pdmd.teachers import WithSchedule
from pdmd.teachers.packaged.digits import DigitsTeacher
from tests.conformance import (
    test_conditions,
    test_copies,
    test_evaluations,
    test_processes,
    test_scores,
)
from tests.helpers import tiny_discrete, tiny_families, tiny_flows
from tests.helpers.broken_teachers import SmallTeacher, VideoTeacher

FAMILIES = {
    **dict.fromkeys(tiny_families.FAMILIES, tiny_families.family),
    **dict.fromkeys(tiny_discrete.FAMILIES, tiny_discrete.family),
    **dict.fromkeys(tiny_flows.FLOWS, tiny_flows.flow),
}
SOUND = {
    "small": SmallTeacher,
    "video": VideoTeacher,
    "narrow time range": lambda: SmallTeacher(time_range=(0.3, 1.0)),
    "x0 on VE": lambda: SmallTeacher(VarianceExploding(5.0), "x0"),
    "shifted": lambda: SmallTeacher(Shifted(RectifiedFlow(), 3.0), "velocity"),
    "epsilon": lambda: SmallTeacher(LinearVP(), "epsilon"),
    "guided": lambda: Guided(SmallTeacher(), 2.0),
    "digits": DigitsTeacher.from_package,
    "guided digits": lambda: Guided(DigitsTeacher.from_package(), 3.0),
    "digits on another schedule": lambda: WithSchedule(
        Guided(DigitsTeacher.from_package(), 3.0), CosineVP()
    ),
    "mixture": MixtureTeacher.random,
    "unconditional mixture": lambda: MixtureTeacher.random(classes=0, schedule=CosineVP()),
    "mixture on another schedule": lambda: WithSchedule(MixtureTeacher.random(), CosineVP()),
}


def test_every_check_has_a_teacher_that_fails_it():
    modules = (test_conditions, test_copies, test_evaluations, test_processes, test_scores)
    assert {name for module in modules for name, *_ in module.BROKEN} == set(CHECKS)


@pytest.mark.parametrize("name", SOUND)
def test_sound_teachers_pass(name):
    report = check(SOUND[name](), skip=["score"])  # tests/conformance/test_scores.py
    assert report.passed, str(report)
    assert [o.name for o in report.outcomes] == [name for name in CHECKS if name != "score"]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_passes(name):
    report = check(FAMILIES[name](name), skip=["score"])
    assert report.passed, str(report)
    skipped = {o.name for o in report.outcomes if o.passed is None}
    unconditional = {"conditions", "guidance"} if name.startswith("ddpm") else set()
    assert skipped - {"decode"} == {"samples"} | unconditional


def test_checks_that_do_not_apply_state_why():
    report = check(MixtureTeacher.random(classes=0), skip=["score"])
    reasons = {o.name: o.detail for o in report.outcomes if o.passed is None}
    assert set(reasons) == {"copy", "parameters", "conditions", "guidance", "decode"}
    assert reasons["copy"] == "the teacher has no weights; students need a network"
    assert "n/a   guidance" in str(report)


def test_checks_are_skipped_by_name():
    report = check(MixtureTeacher.random(), skip=["score", "samples"])
    assert [o.name for o in report.outcomes] == [
        n for n in CHECKS if n not in ("score", "samples")
    ]
    with pytest.raises(ValueError, match="unknown check 'scores' to skip; known are range"):
        check(MixtureTeacher.random(), skip=["scores"])


def test_the_teacher_is_not_modified():
    teacher = SmallTeacher()
    teacher.text.requires_grad_(False)
    teacher.train()
    teacher.outside.eval()
    before = copy.deepcopy(teacher.state_dict())
    state = torch.get_rng_state()
    assert check(teacher, skip=["score"]).passed
    assert torch.equal(torch.get_rng_state(), state)
    assert [p.requires_grad for p in teacher.parameters()] == [True] * 2 + [False] * 2 + [True] * 2
    assert teacher.training and teacher.inside.training and not teacher.outside.training
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())
    assert teacher.precision == torch.float32


def test_prompts_are_required_and_encoded():
    encoded = []

    class Recording(SmallTeacher):
        prompts = ()

        def encode(self, prompts):
            encoded.extend(prompts)
            return super().encode(prompts)

    with pytest.raises(ValueError, match=r"the teacher has no prompts; pass prompts="):
        check(Recording())
    with pytest.raises(TypeError, match=r"such as a list: \['dog'\]"):
        check(Recording(), "dog")
    assert check(Recording(), ["dog"], skip=["score"]).passed
    assert set(encoded) == {"dog", None}
