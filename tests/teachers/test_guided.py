"""Classifier-free guidance: extrapolation from the unconditional prediction."""

import math

import pytest
import torch

from pdmd import Guided, MixtureTeacher, RectifiedFlow, teachers
from pdmd.teachers import WithSchedule
from pdmd.teachers.guided import JOINED_ROWS, guided, unguided
from tests.helpers.tiny_families import family


@pytest.mark.parametrize("name", ["digits", "mixture"])
def test_guidance_extrapolates_from_the_unconditional_prediction(name):
    teacher = teachers.get(name)()
    condition = teacher.encode([1, 2, 3])
    x = torch.randn(3, *teacher.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        conditional = teacher(x, 0.6, condition).value
        unconditional = teacher(x, 0.6, teacher.encode([None] * 3)).value
        assert torch.equal(Guided(teacher, 1.0)(x, 0.6, condition).value, conditional)
        guided = Guided(teacher, 3.0)(x, 0.6, condition).value
    expected = unconditional + 3 * (conditional - unconditional)
    torch.testing.assert_close(guided, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(guided, conditional, atol=1e-3)


def test_guidance_in_an_interval_of_times_is_none_outside_of_it():
    teacher = teachers.get("digits")()
    x, t = torch.randn(3, *teacher.latent_shape), torch.tensor([0.1, 0.5, 0.9]).double()
    condition = teacher.encode([1, 2, 3])
    with torch.no_grad():
        plain, whole, within = (
            wrapped(x, t, condition).value
            for wrapped in (
                teacher,
                Guided(teacher, 3.0),
                Guided(teacher, 3.0, interval=(0.2, 0.8)),
            )
        )
    torch.testing.assert_close(within[1], whole[1])
    torch.testing.assert_close(within[[0, 2]], plain[[0, 2]], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(whole[0], plain[0], atol=1e-3)
    with pytest.raises(ValueError, match="two increasing times"):
        Guided(teacher, 3.0, interval=(0.8, 0.2))


def test_without_a_condition_guidance_returns_the_unconditional_prediction():
    teacher = MixtureTeacher.random(dim=2, classes=3)
    x = torch.randn(5, 2)
    torch.testing.assert_close(Guided(teacher, 2.0)(x, 0.5).value, teacher(x, 0.5).value)


def test_both_predictions_are_one_batch_and_a_scale_of_one_is_one_evaluation():
    teacher = MixtureTeacher.random(dim=2, classes=3)
    batches, network = [], teacher.network
    teacher.network = lambda x, t, condition: batches.append(len(x)) or network(x, t, condition)
    x, condition = torch.randn(5, 2), teacher.encode([0, 1, 2, 0, 1])
    for scale in (1.0, 2.0):
        wrapped = Guided(teacher, scale)
        wrapped(x, 0.5, condition)
        assert wrapped.evaluations == scale
    assert batches == [5, 10]


def test_the_student_is_a_copy_without_guidance():
    teacher = teachers.get("digits")()
    wrapped = Guided(teacher, 2.0)
    x, condition = torch.randn(2, 1, 8, 8), teacher.encode([3, None])
    copy = wrapped.trainable_copy()
    assert torch.equal(copy(x, 0.5, condition).value, teacher(x, 0.5, condition).value)
    assert wrapped.part(1.0, 0.5) is teacher


def test_wrappers_are_added_only_for_guidance_and_removed_in_any_order():
    teacher = MixtureTeacher.random(dim=2, classes=3)
    assert guided(teacher, 1.0) is guided(teacher, (1.0,)) is teacher
    assert isinstance(guided(teacher, 2.0), Guided)
    assert unguided(WithSchedule(Guided(teacher, 2.0), RectifiedFlow())) is teacher
    assert unguided(Guided(WithSchedule(teacher, RectifiedFlow()), 2.0)) is teacher


@pytest.mark.parametrize(
    ("scale", "named"),
    [
        (math.inf, "must be finite, got inf"),
        (math.nan, "scale is nan; pass a number"),
        ((1.0, 2.0), "2 guidance scales for a MixtureTeacher of 1 networks"),
    ],
)
def test_invalid_scales_raise(scale, named):
    with pytest.raises(ValueError, match=named):
        Guided(MixtureTeacher.random(classes=3), scale)


def test_an_unconditional_teacher_cannot_be_guided():
    teacher = MixtureTeacher.random(classes=0)
    with pytest.raises(ValueError, match="MixtureTeacher takes no conditions"):
        Guided(teacher, 2.0)
    x = torch.randn(3, 16)
    assert torch.equal(Guided(teacher, 1.0)(x, 0.5).value, teacher(x, 0.5).value)


def test_guidance_leads_away_from_a_negative_prompt():
    teacher = family("qwen_image")
    x = torch.randn(2, *teacher.latent_shape, generator=torch.Generator().manual_seed(0))
    condition = teacher.encode(list(teacher.prompts[:2]))
    text = teacher.prompts[2]
    away = guided(teacher, 3.0, negative_prompt=text)
    by_hand = Guided(teacher, 3.0, null=teacher.encode([text]))
    with torch.no_grad():
        value = away(x, 0.5, condition).value
        torch.testing.assert_close(value, by_hand(x, 0.5, condition).value, rtol=0, atol=0)
        assert (value - guided(teacher, 3.0)(x, 0.5, condition).value).abs().max() > 1e-3
    with pytest.raises(ValueError, match="has no effect without guidance"):
        guided(teacher, 1.0, negative_prompt=text)


def test_few_rows_are_one_call_and_many_two(monkeypatch):
    teacher, calls = MixtureTeacher.random(dim=3), []
    network = MixtureTeacher.network
    monkeypatch.setattr(
        MixtureTeacher,
        "network",
        lambda self, x, t, condition: calls.append(len(x)) or network(self, x, t, condition),
    )
    wrapped, rows = Guided(teacher, 2.0), JOINED_ROWS + 1
    x, condition = torch.randn(rows, 3), teacher.encode([0] * rows)
    value = wrapped(x, 0.5, condition).value
    few = [wrapped(x[half], 0.5, condition[half]).value for half in (slice(20), slice(20, None))]
    assert calls == [rows, rows, 40, 2 * (rows - 20)]
    torch.testing.assert_close(value, torch.cat(few))
