"""Probes: what they measure, and that a training does not notice them."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pdmd.training.monitoring.health_records import read_health
from pdmd.training.monitoring.probes import HealthProbe, compare, moments
from tests.helpers.failing_runs import failing_run


def videos(samples=400, std=1.0):
    generator = torch.Generator().manual_seed(3)
    prompt = torch.randn((samples // 2, 2, 3, 2, 2), generator=generator).repeat_interleave(2, 0)
    return prompt + std * torch.randn((samples, 2, 3, 2, 2), generator=generator)


@given(st.floats(0.2, 3.0))
def test_scaled_samples_have_that_contrast_and_motion_and_the_same_similarity(scale):
    teacher = videos()
    centre = teacher.mean()
    student = centre + scale * (teacher - centre)
    found = compare(moments(student, centre), moments(teacher, centre), len(teacher))
    assert found["contrast"] == pytest.approx(scale, rel=1e-4)
    assert found["motion"] == pytest.approx(scale, rel=1e-4)
    assert found["similarity"] == pytest.approx(found["teacher_similarity"], abs=1e-4)
    assert found["mean_drift"] == pytest.approx(0, abs=1e-4)


def test_similarity_is_the_share_of_the_variance_that_the_prompt_explains():
    teacher = videos(20_000, std=0.5)
    found = compare(moments(teacher, teacher.mean()), moments(teacher, teacher.mean()), 20_000)
    assert found["teacher_similarity"] == pytest.approx(1 / 1.25, abs=0.01)
    assert found["diversity"] == 1


def test_pairs_that_are_equal_and_frames_that_stand_still():
    teacher = videos()
    alike = teacher[::2].repeat_interleave(2, 0)
    still = teacher[:, :, :1].expand_as(teacher)
    of = {
        name: compare(moments(x, teacher.mean()), moments(teacher, teacher.mean()), len(x))
        for name, x in {"alike": alike, "still": still, "shifted": teacher + 2}.items()
    }
    assert of["alike"]["similarity"] == 1 and of["alike"]["diversity"] == 0
    assert of["still"]["motion"] == 0
    assert of["shifted"]["mean_drift"] == pytest.approx(2 / float(teacher.std()), rel=1e-3)


def test_standard_errors_are_those_of_repeated_measurements():
    centre = torch.tensor(0.0)
    ratios, errors = [], []
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        x, y = torch.randn((2, 32, 4), generator=generator)
        found = compare(moments(x, centre), moments(y, centre), 32)
        ratios.append(found["contrast"])
        errors.append(found["contrast_error"])
    spread = float(torch.tensor(ratios).std())
    assert sum(errors) / len(errors) == pytest.approx(spread, rel=0.2)


def test_a_training_does_not_notice_that_it_is_measured(tmp_path):
    torch.manual_seed(1)
    with_probes = failing_run(tmp_path / "a", updates=6, every=2, samples=6)
    after = torch.rand(())
    torch.manual_seed(1)
    without = failing_run(tmp_path / "b", updates=6, every=0)
    assert torch.equal(after, torch.rand(()))
    for name, value in without.state_dict().items():
        assert torch.equal(value, with_probes.state_dict()[name]), name
    counted = [
        json.loads((tmp_path / run / "history.jsonl").read_text().splitlines()[-1])["scalars"]
        for run in "ab"
    ]
    assert counted[0] == counted[1]  # losses, and evaluations by role
    records, _ = read_health(tmp_path / "a" / "health.jsonl")
    assert [record.update for record in records] == [2, 4, 6]
    assert not (tmp_path / "b" / "health.jsonl").exists()


def test_the_first_measurement_of_an_expert_that_is_the_teacher_is_good(tmp_path):
    failing_run(tmp_path, "", updates=1, every=1)
    ((record,), _) = read_health(tmp_path / "health.jsonl")
    values = record.values
    assert values["health/fake_loss"] < 1.1 and values["health/contrast"] < 1.1


@pytest.mark.parametrize("setting", ["every", "samples", "steps"])
def test_numbers_below_one_are_errors(setting):
    with pytest.raises(ValueError, match=f"{setting} must be at least 1, got 0"):
        HealthProbe(**{setting: 0})
