"""Metrics of clips: still, uniform and mislabelled samples are told apart from real ones."""

import pytest
import torch

from pdmd.evaluation.clip_classifier import ClipClassifier
from pdmd.evaluation.clip_evaluator import ClipsEvaluator
from pdmd.teachers.packaged.clip_world import CLIP_NAMES, ClipBank
from pdmd.teachers.packaged.clips import ClipsTeacher
from pdmd.teachers.packaged.video_transformer import VideoTransformer

NUMBER = 160


@pytest.fixture(scope="module")
def bank():
    return ClipBank()


@pytest.fixture(scope="module")
def measure(bank):
    teacher = ClipsTeacher(VideoTransformer(depth=0), mean=0.9, std=0.2)
    prompts = [CLIP_NAMES[i % 20] for i in range(NUMBER)]
    character = torch.arange(NUMBER) % 20
    clips = bank.draw(NUMBER, torch.Generator().manual_seed(5), character)
    return ClipsEvaluator(teacher, prompts, teacher.latents(clips.pictures), seed=0)


def test_the_classifier_reads_frames_of_another_seed(bank):
    classifier = ClipClassifier.from_package()
    clips = bank.draw(300, torch.Generator().manual_seed(99))
    character, _ = classifier(classifier.features(clips.pictures))
    assert (character.argmax(2) == clips.character[:, None]).float().mean() > 0.97


def test_real_clips_score_as_the_reference(measure):
    row = measure.real()
    assert row["accuracy"] > 0.97 and row["consistency"] > 0.75
    for name in ("relative_flow", "flow_spread"):
        assert row[name] == pytest.approx(1, abs=0.15)
    assert row["flow_distance"] < 0.1 and row["path_error"] < 0.1


def test_still_clips_have_no_motion_and_their_appearance(measure):
    real, still = measure.reference, measure.reference[:, :, 4:5].expand(-1, -1, 8, -1, -1)
    row, base = measure(still), measure(real)
    assert row["relative_flow"] == row["flow_spread"] == 0 and base["relative_flow"] == 1
    assert row["consistency"] == pytest.approx(1) and row["accuracy"] > 0.95
    assert row["flow_distance"] > 0.3 > base["flow_distance"] == 0


def test_one_clip_per_prompt_moves_in_one_direction(measure):
    row = measure(measure.reference[:20].repeat(NUMBER // 20, 1, 1, 1, 1))
    assert row["flow_spread"] == pytest.approx(0) and row["directions"] == pytest.approx(1)
    assert row["vendi"] == pytest.approx(1, abs=1e-4) and row["accuracy"] > 0.9


def test_other_characters_and_changing_ones_are_told_apart(measure):
    real = measure.reference
    assert measure(real.roll(1, 0))["accuracy"] < 0.1
    cut = torch.cat([real[:, :, :4], real.roll(1, 0)[:, :, 4:]], 2)
    assert measure(cut)["consistency"] < measure(real)["consistency"] - 0.2
