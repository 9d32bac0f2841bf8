"""The fashion benchmark on the original files, whose folder the variable FASHION_MNIST names."""

import os

import pytest
import torch

from pdmd.benchmarks import BenchConfig
from pdmd.benchmarks.fashion import FashionBenchmark
from pdmd.evaluation.fashion_classifier import FashionClassifier
from pdmd.teachers.packaged.fashion_images import FashionImages

FOLDER = os.environ.get("FASHION_MNIST", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER, reason="FASHION_MNIST names no folder; run make fashion"),
]


def test_both_splits_have_their_pictures_and_the_moments_of_the_card():
    for split, count in (("train", 60_000), ("t10k", 10_000)):
        images = FashionImages.from_folder(FOLDER, split)
        assert images.pictures.shape == (count, 1, 28, 28)
        assert torch.bincount(images.labels).tolist() == [count // 10] * 10
    train = FashionImages.from_folder(FOLDER, "train").pictures
    assert float(train.mean()) == pytest.approx(0.2860, abs=5e-5)
    assert float(train.std()) == pytest.approx(0.3530, abs=5e-5)


def test_the_classifier_is_right_as_often_as_the_card_says():
    images = FashionImages.from_folder(FOLDER, "t10k")
    classifier = FashionClassifier.from_package()
    found = classifier(classifier.features(images.pictures)).argmax(1)
    assert float((found == images.labels).float().mean()) == pytest.approx(0.919, abs=1e-3)


def test_students_are_measured_against_the_teacher_and_the_pictures(tmp_path):
    """At a fifteenth of the benchmark's updates a student is still on its way."""
    config = BenchConfig(name="fashion", updates=8, samples=200, data=FOLDER)
    benchmark = FashionBenchmark(config, tmp_path)
    benchmark.prepare(False)
    teacher, euler, student = (
        benchmark.run(method, 0)[0] for method in ("teacher", "teacher_euler_4", "phased_2x2")
    )
    assert teacher["feature_distance"] < student["feature_distance"] < euler["feature_distance"]
    assert teacher["feature_distance_real"] < euler["feature_distance_real"]
    assert student["boundary_1"] > 0.8  # of the distance of two draws of the teacher
