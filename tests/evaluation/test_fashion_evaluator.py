"""The evaluator of clothes: it finds what is wrong with samples."""

import pytest
import torch

from pdmd import teachers
from pdmd.evaluation.evaluators import FashionEvaluator, evaluator_for, needs_condition
from pdmd.teachers.guided import Guided
from pdmd.teachers.packaged.fashion_images import FashionImages


@pytest.fixture(scope="module")
def teacher():
    return teachers.get("fashion")()


def clothes(count, seed):
    """Returns pictures of ten kinds, several of each kind, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 10
    shapes = torch.rand(10, 3, 1, 28, 28, generator=torch.Generator().manual_seed(9))
    kinds = torch.randint(0, 3, (count,), generator=generator)
    noise = 0.1 * torch.randn(count, 1, 28, 28, generator=generator)
    return FashionImages((shapes[labels, kinds] + noise).clamp(0, 1), labels)


def test_collapse_within_a_class_is_seen_with_the_right_mean(teacher):
    reference, other = clothes(300, 0), clothes(300, 1)
    condition = teacher.encode(reference.labels.tolist())
    measure = FashionEvaluator(teacher, condition, teacher.latents(reference.pictures), other)
    many = measure(teacher.latents(clothes(300, 2).pictures))
    one = measure(teacher.latents(reference.pictures[:10].repeat(30, 1, 1, 1)))
    assert many["vendi"] > 1.01 * one["vendi"] and one["vendi"] == pytest.approx(1, abs=1e-3)
    assert one["cosine"] == pytest.approx(1, abs=1e-4) and many["cosine"] < 0.999
    for name in ("feature_distance", "feature_distance_real"):
        assert many[name] < one[name] / 2
    assert many["coverage"] > one["coverage"]
    assert many["accuracy_lowest"] <= many["accuracy"]


def test_the_halves_of_real_pictures_are_compared(teacher):
    reference = clothes(100, 4)
    condition = teacher.encode(reference.labels.tolist())
    latents = teacher.latents(reference.pictures)
    real = FashionEvaluator(teacher, condition, latents, clothes(400, 3)).real()
    assert real["feature_distance_real"] < real["feature_distance"] * 2
    assert FashionEvaluator(teacher, condition, latents).real() is None
    assert "feature_distance_real" not in FashionEvaluator(teacher, condition, latents)(latents)
    with pytest.raises(ValueError, match="evaluate fewer samples"):
        FashionEvaluator(teacher, condition, latents, clothes(60, 5)).real()


def test_the_teacher_selects_it_guided_or_not(teacher):
    condition = teacher.encode([0, 1] * 5)
    x = torch.randn(10, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    for one in (teacher, Guided(teacher, 2.0)):
        assert isinstance(evaluator_for(one, condition, x, 0), FashionEvaluator)
        assert needs_condition(one)
