"""Evaluators: exact samples score best, collapsed samples as in closed form."""

import math

import pytest
import torch

from pdmd import Guided, LinearVP, MixtureTeacher
from pdmd.evaluation.evaluators import (
    DigitsEvaluator,
    LatentEvaluator,
    MixtureEvaluator,
    evaluator_for,
)
from pdmd.teachers.packaged.digits import DigitsTeacher
from tests.helpers.broken_teachers import SmallTeacher


@pytest.fixture(scope="module")
def mixture():
    return MixtureTeacher.random(dim=4, classes=3, modes=2)


def test_exact_samples_of_a_mixture_score_best(mixture):
    condition = mixture.encode([i % 3 for i in range(900)])
    evaluator = MixtureEvaluator(mixture, condition, 900, seed=0)
    exact = evaluator.real()
    assert exact["modes"] == 1 and exact["klh"] < 0.02
    assert abs(exact["log_likelihood_gap"]) < 0.2
    worse = evaluator(evaluator.fresh + 0.3)
    assert worse["sw2"] > exact["sw2"] and worse["log_likelihood_gap"] < -0.5


def test_one_mode_per_class_is_half_of_the_modes(mixture):
    condition = mixture.encode([i % 3 for i in range(900)])
    evaluator = MixtureEvaluator(mixture, condition, 900, seed=0)
    collapsed = mixture.means.float()[[0, 2, 4]].repeat(300, 1)
    row = evaluator(collapsed)
    assert row["modes"] == 0.5 and row["klh"] == pytest.approx(math.log(2), abs=0.02)


def test_a_reference_matches_itself_in_latents():
    x = torch.randn(400, 2, 3, generator=torch.Generator().manual_seed(0))
    evaluator = LatentEvaluator(x, seed=0)
    same, shifted = evaluator(x), evaluator(x + 100)
    assert same == {
        "feature_distance": pytest.approx(0, abs=1e-9),
        "sw2": 0,
        "coverage": 1,
        "precision": 1,
    }
    assert shifted["coverage"] == shifted["precision"] == 0
    assert shifted["feature_distance"] == pytest.approx(6 * 100**2, rel=1e-4)


def test_large_latents_are_projected():
    x = torch.randn(100, 5, 5, generator=torch.Generator().manual_seed(0))
    evaluator = LatentEvaluator(x, seed=0, limit=8)
    assert evaluator.reference.shape == (100, 8)
    shift = evaluator(x + 1)["feature_distance"]
    assert shift == pytest.approx(
        float(evaluator.projection.matrix.sum(0).square().sum()), rel=1e-3
    )


def test_real_digits_are_classified_and_cover_each_other():
    teacher = DigitsTeacher.from_package()
    condition = teacher.encode([i % 10 for i in range(200)])
    noise = torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    evaluator = DigitsEvaluator(teacher, condition, noise, seed=0)
    real, bad = evaluator.real(), evaluator(noise)
    assert real["accuracy"] > 0.98 and real["coverage"] > 0.9 and real["precision"] > 0.9
    assert bad["feature_distance"] == pytest.approx(0, abs=1e-3)  # the reference itself
    assert bad["feature_distance_real"] > 50 * real["feature_distance_real"]
    assert bad["accuracy"] < 0.3


def test_the_teacher_selects_the_evaluator(mixture):
    condition = mixture.encode([0, 1, 2] * 10)
    x = torch.randn(30, 4)
    guided = evaluator_for(Guided(mixture, 2.0), condition, x, 0)
    assert isinstance(guided, MixtureEvaluator)
    other = evaluator_for(SmallTeacher(LinearVP()), None, torch.randn(30, 16), 0)
    assert isinstance(other, LatentEvaluator) and other.real() is None
