"""The tutorial's family, from a blank file: it samples as its pipeline does, and loads."""

import functools
import runpy
from pathlib import Path

import pytest
import torch

from pdmd import Guided
from pdmd.conformance import check
from pdmd.teachers.base import teachers
from tests.helpers.tiny_encoders import t5
from tests.helpers.tiny_families import close, noise, ode, scheduler
from tests.helpers.tiny_pipelines import bare, image_vae, shared

EXAMPLE = Path(__file__).parents[3] / "examples" / "06_new_family.py"
SIZE = {"height": 64, "width": 48}
TINY = {
    **SIZE,
    "num_mmdit_layers": 1,
    "num_single_dit_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "joint_attention_dim": 32,
    "caption_projection_dim": 32,
    "random_prompts": 2,
}


@pytest.fixture(scope="module")
def built():
    family = runpy.run_path(str(EXAMPLE))["AuraFlowTeacher"]
    yield functools.partial(teachers.get("aura_flow")), family
    teachers.remove("aura_flow")


def pipeline_of(teacher, text=(None, None)):
    return bare(
        "AuraFlowPipeline",
        transformer=teacher.backbone,
        scheduler=scheduler(shift=1.73),
        vae=image_vae(4),
        tokenizer=text[0],
        text_encoder=text[1],
    )


def test_the_example_conforms(built):
    report = check(built[0](**TINY), skip=["score"])
    assert report.passed, str(report)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_the_example_samples_as_its_pipeline_does(built, scale):
    teacher = built[0](**TINY).requires_grad_(False)
    condition, null = teacher.encode(teacher.prompts), teacher.encode([None])
    pipeline = pipeline_of(teacher)
    masks = {key: torch.ones(2, 256) for key in ("prompt", "negative_prompt")}
    expected = pipeline(
        prompt_embeds=condition["prompt"],
        negative_prompt_embeds=shared(null, 2),
        **{f"{key}_attention_mask": mask for key, mask in masks.items()},
        guidance_scale=scale,
        latents=noise(teacher, 2),
        **SIZE,
        num_inference_steps=4,
        output_type="latent",
    ).images
    times = pipeline.scheduler.sigmas.tolist()
    close(ode(Guided(teacher, scale), condition, times), expected)


def test_the_example_loads_from_its_pipelines_folder(built, tmp_path):
    teacher = built[0](**TINY)
    pipeline = pipeline_of(teacher, text=t5(32))
    pipeline.save_pretrained(tmp_path)
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    loaded = built[0](
        folder=str(tmp_path), prompts=str(tmp_path / "prompts.txt"), dtype="float32", **SIZE
    )
    assert type(loaded) is built[1] and loaded.shift == 1.73
    for key, weight in teacher.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[key])
    condition = loaded.encode([*loaded.prompts, None])
    expected, _, null, _ = pipeline.encode_prompt(["a cat", "a dog"])
    close(condition["prompt"], torch.cat([expected, null[:1]]))
    x = noise(loaded, 2)
    with torch.no_grad():
        theirs = pipeline.vae.decode(x / 1.5 + 0.06).sample
    close(loaded.decode(x), (theirs / 2 + 0.5).clamp(0, 1))
