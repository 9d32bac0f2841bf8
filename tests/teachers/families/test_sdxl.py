"""SDXL: folders, the pooled text and the size, stored embeddings."""

import json

import pytest
import torch

from pdmd import (
    Guided,
)
from pdmd.teachers import (
    PromptEmbeddings,
    SDXLTeacher,
)
from tests.helpers.tiny_discrete import family, xl_pipeline
from tests.helpers.tiny_encoders import clip
from tests.helpers.tiny_families import close, noise, ode

STEPS = [1.0, 0.75, 0.5, 0.25, 0.0]


@pytest.mark.parametrize("force_zeros", [True, False])
def test_sdxl_loads_from_its_pipelines_folder(tmp_path, force_zeros):
    teacher = family("sdxl")
    first, second = clip(10), clip(14, 12)
    pipeline = xl_pipeline(teacher, text=(*first, *second), force_zeros=force_zeros)
    pipeline.save_pretrained(tmp_path)
    prompts = ["a cat", "an even longer prompt"]
    loaded = SDXLTeacher.from_pretrained(
        tmp_path, height=64, width=48, prompts=prompts, dtype="float32"
    )
    condition = loaded.encode([*prompts, None, ""])
    tokens, null, pooled, null_pooled = pipeline.encode_prompt(prompts)
    close(condition["prompt"][:3], torch.cat([tokens, null[:1]]))
    close(condition["pooled"][:3], torch.cat([pooled, null_pooled[:1]]))
    assert bool((condition["prompt"][2] == 0).all()) == force_zeros
    assert (condition["prompt"][3] != 0).any()  # an empty text that was given
    for i, prompt in enumerate([*prompts, None, ""]):
        alone = loaded.encode([prompt])
        close(alone["prompt"], condition["prompt"][i : i + 1])
        close(alone["pooled"], condition["pooled"][i : i + 1])
    images = pipeline(
        prompt=prompts,
        latents=noise(teacher, 2),
        height=64,
        width=48,
        num_inference_steps=4,
        guidance_scale=5.0,
        output_type="pt",
    ).images
    x = ode(Guided(loaded, 5.0), condition[:2], STEPS)
    close(loaded.decode(x), images, 1e-4)


def test_sdxl_heeds_its_size_and_pooled_text():
    teacher = family("sdxl")
    condition = teacher.encode(teacher.prompts)
    x = noise(teacher, 2)
    other = condition.clone()
    other["pooled"] = other["pooled"].flip(0)
    with torch.no_grad():
        value = teacher(x, 0.5, condition).value
        assert (teacher(x, 0.5, other).value - value).abs().max() > 1e-3
    height, width = teacher.options["height"], teacher.options["width"]
    ids = teacher.added_inputs(condition, torch.cat([x, x], 2))["time_ids"]
    assert ids.tolist() == [[2 * height, width, 0, 0, 2 * height, width]] * 2


def test_a_refiner_is_refused(tmp_path):
    content = {
        "_class_name": "StableDiffusionXLImg2ImgPipeline",
        "requires_aesthetics_score": True,
    }
    (tmp_path / "model_index.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is a refiner"):
        SDXLTeacher.from_pretrained(tmp_path)


def test_embeddings_take_the_text_encoders_place(tmp_path):
    teacher = family("sdxl")
    xl_pipeline(teacher, text=(*clip(10), *clip(14, 12))).save_pretrained(tmp_path)
    loaded = SDXLTeacher.from_pretrained(
        tmp_path, height=64, width=48, embeddings=teacher.text, dtype="float32"
    )
    assert isinstance(loaded.text, PromptEmbeddings)
    condition, x = loaded.encode(loaded.prompts), noise(teacher, 2)
    with torch.no_grad():
        close(loaded(x, 0.5, condition).value, teacher(x, 0.5, condition).value)
