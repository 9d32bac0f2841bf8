"""Stable Diffusion: folders, and students on rectified flow."""

import pytest
import torch

from pdmd import (
    DistributionMatching,
    Guided,
    PhasePlan,
    RectifiedFlow,
    Student,
    SubintervalScoreMatching,
    sample,
)
from pdmd.cli.main import main
from pdmd.objectives import UniformTimes
from pdmd.teachers import (
    StableDiffusionTeacher,
    WithSchedule,
)
from pdmd.teachers.base import teachers
from tests.helpers.distilling import distill
from tests.helpers.tiny_discrete import SD, decoded, family, sd_pipeline
from tests.helpers.tiny_encoders import clip
from tests.helpers.tiny_families import close, noise, ode

STEPS = [1.0, 0.75, 0.5, 0.25, 0.0]


@pytest.mark.parametrize("name", ["sd", "sd_v", "sd_zero"])
def test_stable_diffusion_loads_from_its_pipelines_folder(tmp_path, name):
    teacher = family(name)
    pipeline = sd_pipeline(teacher, text=clip(16))
    pipeline.save_pretrained(tmp_path)
    (tmp_path / "prompts.txt").write_text("a cat\nan even longer prompt about dogs\n")
    loaded = teachers.get("stable_diffusion")(
        folder=str(tmp_path),
        prompts=str(tmp_path / "prompts.txt"),
        height=64,
        width=48,
        dtype="float32",
    )
    assert loaded.kind == teacher.kind
    torch.testing.assert_close(
        loaded.levels.alphas_cumprod, teacher.levels.alphas_cumprod, rtol=0, atol=0
    )
    condition = loaded.encode([*loaded.prompts, None])
    expected, null = pipeline.encode_prompt(list(loaded.prompts), "cpu", 1, True)
    close(condition["prompt"], torch.cat([expected, null[:1]]))
    close(loaded.encode(["a cat"])["prompt"], condition["prompt"][:1])
    images = pipeline(
        prompt=list(loaded.prompts),
        latents=noise(teacher, 2),
        height=64,
        width=48,
        num_inference_steps=4,
        guidance_scale=5.0,
        output_type="pt",
    ).images
    x = ode(Guided(loaded, 5.0), condition[:2], STEPS)
    close(loaded.decode(x), images, 1e-4)
    close(loaded.decode(x), decoded(x))
    assert torch.equal(loaded(x, 0.5, condition[:2]).value.isfinite().all(), torch.tensor(True))
    outline = StableDiffusionTeacher.from_pretrained(tmp_path, meta=True)
    assert {p.device.type for p in outline.parameters()} == {"meta"}
    side = {1: 512, 2: 768}[1 if name == "sd" else 2]
    assert (outline.options["height"], outline.options["width"]) == (
        side,
        side,
    )  # the network's own


def test_a_rectified_flow_student_of_stable_diffusion_distills_to_its_last_level():
    teacher = family("sd")
    with pytest.raises(ValueError, match=r"t = 1, outside its range \[0.02.*reach"):
        distill(WithSchedule(teacher, RectifiedFlow()), PhasePlan.uniform(2))
    times = UniformTimes(0.05)  # its first level is at 0.03 there
    student = distill(
        WithSchedule.reach(Guided(teacher, 3.0), RectifiedFlow()),
        PhasePlan.uniform(2),
        generator_objective=DistributionMatching(times=times),
        fake_objective=SubintervalScoreMatching(times=times),
        updates=1,
        fake_updates=1,
        batch_size=2,
    )
    assert student.kind == "velocity"
    assert sample(student, student.encode(teacher.prompts)).isfinite().all()


@pytest.mark.slow
def test_the_command_line_distills_stable_diffusion_on_rectified_flow(tmp_path, capsys):
    arguments = {**SD, "height": 64, "width": 64, "random_prompts": 2}
    words = [
        *("--teacher.name", "stable_diffusion", "--teacher.guidance", "3"),
        *("--teacher.arguments", *(str(w) for pair in arguments.items() for w in pair)),
        *("--teacher.schedule", "rectified_flow", "--plan.phases", "2", "--no-progress"),
        *("--train.updates", "1", "--train.fake-updates", "1", "--train.batch-size", "2"),
        *("--evaluate.samples", "100", "--evaluate.teacher-steps", "2"),
        *("--out", str(tmp_path / "run")),
    ]
    assert main(["distill", "digits", *words]) == 2
    assert "--teacher.schedule-end teacher" in capsys.readouterr().err
    words += ["--teacher.schedule-end", "teacher"]
    assert main(["distill", "digits", *words]) == 2
    assert "t = 0.02, outside its range [0.03" in capsys.readouterr().err
    assert main(["distill", "digits", *words, "--objective.margin", "0.04"]) == 0
    student = Student.load(tmp_path / "run" / "student")
    alpha, sigma = student.schedule(1.0)
    assert float(alpha + sigma) == pytest.approx(1.0) and student.kind == "velocity"
    assert float(sigma) == pytest.approx(0.936, abs=1e-3)
    out = str(tmp_path / "x.safetensors")
    assert main(["sample", str(tmp_path / "run"), "--n", "2", "--out", out]) == 0
