"""The digits teacher: packaged weights, quality, and reproducible pretraining."""

from importlib import resources

import pytest
import torch

from pdmd import sample_ode, teachers
from pdmd.cli.main import main
from pdmd.evaluation.classifier import DigitsClassifier
from pdmd.evaluation.metrics import frechet_distance
from pdmd.teachers.packaged.digits import DigitsTeacher, load_digit_images

WEIGHTS = resources.files("pdmd.teachers.packaged") / "weights"


def quality(teacher, n=1500):
    """Returns the accuracy of the classifier on samples, and their Frechet distance."""
    prompts = [i % 10 for i in range(n)]
    x = sample_ode(
        teacher,
        teacher.encode(prompts),
        steps=30,
        generator=torch.Generator().manual_seed(0),
    )
    classifier = DigitsClassifier.from_package()
    images, _, _ = load_digit_images(teacher.std)
    right = (classifier(x).argmax(1) == torch.tensor(prompts)).float().mean()
    return float(right), frechet_distance(classifier.features(x), classifier.features(images))


def test_the_weights_are_small_and_have_a_card():
    assert len((WEIGHTS / "digits.safetensors").read_bytes()) < 2_000_000
    card = (WEIGHTS / "digits.md").read_text()
    for word in ("pdmd pretrain digits", "scikit-learn", "Licence", "194,244"):
        assert word in card
    assert sum(p.numel() for p in teachers.get("digits")().parameters()) == 194_244


def test_real_images_are_recognised():
    images, labels, _ = load_digit_images()
    classifier = DigitsClassifier.from_package()
    assert float((classifier(images).argmax(1) == labels).float().mean()) > 0.97


def test_the_teacher_generates_digits():
    accuracy, distance = quality(teachers.get("digits")())
    assert accuracy > 0.96 and distance < 0.8


def test_weights_round_trip_and_damaged_files_raise(tmp_path):
    teacher, path = teachers.get("digits")(), tmp_path / "digits.safetensors"
    teacher.save(path)
    again = DigitsTeacher.from_file(path)
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="pdmd pretrain digits"):
        DigitsTeacher.from_file(path)
    with pytest.raises(ValueError, match="does not exist"):
        DigitsTeacher.from_file(tmp_path / "none.safetensors")


def test_pretraining_depends_on_its_seed(tmp_path):
    written = {}
    for name, seed in (("default", []), ("explicit", ["--seed", "1"]), ("other", ["--seed", "5"])):
        path = tmp_path / f"{name}.safetensors"
        words = ["pretrain", "digits-classifier", "--updates", "2", "--out", str(path)]
        assert main([*words, *seed]) == 0
        written[name] = path.read_bytes()
    assert written["default"] == written["explicit"] != written["other"]


@pytest.mark.slow
def test_pretraining_again_reaches_the_same_quality(tmp_path):
    path = tmp_path / "digits.safetensors"
    assert main(["pretrain", "digits", "--out", str(path)]) == 0
    accuracy, distance = quality(DigitsTeacher.from_file(path))
    shipped_accuracy, shipped_distance = quality(teachers.get("digits")())
    assert accuracy > shipped_accuracy - 0.015
    assert distance < 1.3 * shipped_distance + 0.05


@pytest.mark.slow
def test_the_student_of_the_demo_is_better_than_four_euler_steps(tmp_path, capsys):
    import json

    assert main(["distill", "digits", "--out", str(tmp_path / "digits"), "--no-progress"]) == 0
    rows = json.loads((tmp_path / "digits" / "metrics.json").read_text())["rows"]
    row = {r["method"]: r for r in rows}
    assert list(row) == ["real", "teacher", "teacher_euler_4", "student"]
    student, few = row["student"], row["teacher_euler_4"]
    assert student["feature_distance"] <= few["feature_distance"] / 2
    assert student["coverage"] >= 0.95 * row["teacher"]["coverage"]
