"""Validation: rows over ranks, figures, and what is written."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pdmd import PhasePlan, Session, distill
from pdmd.diffusion.sampling import initial_noise, sample_ode
from pdmd.distillation.unfinished import flow, sample_unfinished, teacher_times
from pdmd.evaluation.validation import ValidationSet, Validator, validation_figures
from pdmd.randomness import RankGenerator
from pdmd.training.fake_scores import FakeScoreTraining
from pdmd.training.monitoring.recorder import RunRecorder
from pdmd.training.rollouts import Rollouts
from tests.helpers.failing_runs import Gaussians
from tests.helpers.sizes import SIZES, AnySize


def validated(folder, *, updates=2, every=2, batch=0, teacher=None):
    teacher = teacher or Gaussians((3, 4, 8, 8))
    teacher.decode = lambda x: x.sigmoid()
    chosen = ValidationSet(prompts=[0, 2], condition=teacher.encode([0, 2]), seeds=2)
    student = distill(
        teacher,
        PhasePlan.uniform(2),
        updates=updates,
        fake_scores=FakeScoreTraining(updates=1),
        rollouts=Rollouts(batch_size=4),
        session=Session(
            recorder=RunRecorder(folder, progress=False),
            monitors=[
                Validator(
                    folder / "validation",
                    chosen,
                    teacher.decode,
                    every=every,
                    steps=3,
                    batch=batch,
                )
            ],
        ),
    )
    return student, folder / "validation"


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_student_and_teacher_are_drawn_side_by_side_also_in_motion(tmp_path):
    student, folder = validated(tmp_path)
    assert [(row["phase"], row["update"]) for row in rows(folder)] == [(1, 2), (2, 2)]
    with Image.open(folder / "phase_2_update_000002.png") as picture:
        pixels = np.asarray(picture.convert("L"), float)
    assert pixels.shape[1] > 200 and pixels[:, : pixels.shape[1] // 2].std() > 5
    moving = [p for p in folder.iterdir() if p.suffix in (".mp4", ".gif")]
    assert len(moving) == 2 and all(p.stat().st_size > 500 for p in moving)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in events.Images("validation")] == [2, 4]
    assert [e.step for e in events.Scalars("validation/distance")] == [2, 4]
    del student


def test_rows_do_not_depend_on_the_size_of_batches(tmp_path):
    _, whole = validated(tmp_path / "a")
    _, parts = validated(tmp_path / "b", batch=1)
    for a, b in zip(rows(whole), rows(parts), strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_the_teachers_samples_are_computed_once(tmp_path):
    calls = []

    class Counted(Gaussians):
        def network(self, x_t, t, condition):
            if not any(p.requires_grad for p in self.parameters()):
                calls.append(len(x_t))
            return super().network(x_t, t, condition)

    _, folder = validated(tmp_path, teacher=Counted((3, 4, 8, 8)))
    first = len(calls)
    calls.clear()
    stored = (folder / "teacher.safetensors").stat().st_mtime_ns
    validated(tmp_path, teacher=Counted((3, 4, 8, 8)))
    assert (folder / "teacher.safetensors").stat().st_mtime_ns == stored
    assert len(calls) == first - 3  # its three steps


def test_a_decoder_that_fails_ends_no_training(tmp_path, capsys):
    teacher = Gaussians((3, 4, 8, 8))
    chosen = ValidationSet(prompts=[0], condition=teacher.encode([0]))

    def decode(x):
        raise RuntimeError("out of memory")

    distill(
        teacher,
        PhasePlan.uniform(1),
        updates=1,
        rollouts=Rollouts(batch_size=4),
        session=Session(
            recorder=RunRecorder(tmp_path, progress=False),
            monitors=[Validator(tmp_path / "validation", chosen, decode, every=1, steps=2)],
        ),
    )
    assert "could not be decoded (out of memory)" in capsys.readouterr().err
    assert rows(tmp_path / "validation")


def test_another_size_has_a_folder_and_scalars_of_its_own(tmp_path):
    bucket, scalars = SIZES.find((2, 6)), []
    assert bucket is not None

    class Scalars(RunRecorder):
        def on_validation(self, phase, update, values, picture):
            scalars.append((set(values), picture.parent.name))

    distill(
        AnySize(),
        PhasePlan.uniform(1),
        updates=1,
        rollouts=Rollouts(batch_size=4, buckets=SIZES),
        session=Session(
            recorder=Scalars(tmp_path, progress=False),
            monitors=[
                Validator(
                    tmp_path,
                    ValidationSet(prompts=[None], condition=None, seeds=3),
                    None,
                    every=1,
                    steps=4,
                    bucket=bucket,
                )
            ],
        ),
        check_score=False,
    )
    names = {"distance", "diversity", "teacher_diversity"}
    assert scalars == [({f"validation_2x6/{name}" for name in names}, "2x6")]
    assert (tmp_path / "2x6" / "phase_1_update_000001.png").is_file()
    drawn = load_file(tmp_path / "2x6" / "teacher.safetensors")["latents"]
    generator = RankGenerator.make(0, first_row=0)
    noise = initial_noise(AnySize(), 3, generator, latent_shape=(2, 6))
    expected = flow(AnySize(), noise, 1.0, 0.0, None, times=teacher_times(AnySize(), 4, 1.5))
    torch.testing.assert_close(drawn, expected)


def test_figures_of_equal_alike_and_independent_samples():
    generator = torch.Generator().manual_seed(0)
    y = torch.randn((400, 8), generator=generator)
    assert validation_figures(y, y, 2)["distance"] == 0
    assert validation_figures(y.repeat_interleave(2, 0), y.repeat(2, 1), 2)["diversity"] == 0
    found = validation_figures(torch.randn((400, 8), generator=generator), y, 2)
    assert found["distance"] == pytest.approx(2**0.5, rel=0.05)
    assert found["diversity"] == pytest.approx(1, rel=0.1)
    assert set(validation_figures(y, y, 1)) == {"distance"}


def test_a_student_without_experts_is_the_teacher():
    teacher = Gaussians()
    condition = teacher.encode([0, 1])
    x = sample_unfinished(
        [],
        teacher,
        condition,
        batch=2,
        generator=torch.Generator().manual_seed(1),
        times=teacher_times(teacher, 5),
    )
    known = sample_ode(teacher, condition, steps=5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(x, known)


def test_a_flow_in_two_parts_is_the_flow_where_they_meet_at_a_time_of_the_teacher():
    teacher = Gaussians()
    condition, x = teacher.encode([0]), torch.randn(1, *teacher.latent_shape)
    times = teacher_times(teacher, 10)
    with torch.no_grad():
        whole = flow(teacher, x, 1.0, 0.0, condition, times=times)
        half = flow(teacher, x, 1.0, times[4], condition, times=times)
        parts = flow(teacher, half, times[4], 0.0, condition, times=times)
    torch.testing.assert_close(whole, parts)


def test_settings_out_of_range_are_errors(tmp_path):
    chosen = ValidationSet(prompts=[0], condition=None)
    with pytest.raises(ValueError, match="every = 0"):
        Validator(tmp_path, chosen, None, every=0)
