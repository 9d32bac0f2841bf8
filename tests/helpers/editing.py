"""A tiny Qwen-Image-Edit, and its pipeline run on one row at the teacher's size."""

import functools
from unittest import mock

from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as edit_plus

from pdmd.teachers.base import teachers
from pdmd.teachers.families.tiny.pipelines import TINY
from pdmd.teachers.families.tokens import pack, unpack

SIZE = {"height": 64, "width": 32, "reference_height": 32, "reference_width": 64}


def arguments(**more):
    return {**TINY["qwen_image_edit"].sizes, **SIZE, "random_prompts": 3, "text_length": 7, **more}


@functools.cache
def edit(zero=True):
    built = teachers.get("qwen_image_edit")(**arguments(zero_cond_t=zero))
    return built.requires_grad_(False)


def run(pipeline, model, image, start, *, scale, output="latent", **given):
    """Runs the pipeline on one row, with the image at the teacher's size."""
    with mock.patch.object(edit_plus, "VAE_IMAGE_SIZE", 32 * 64):
        out = pipeline(
            image=image,
            latents=pack(start),
            true_cfg_scale=scale,
            height=SIZE["height"],
            width=SIZE["width"],
            num_inference_steps=3,
            output_type=output,
            **given,
        ).images
    return unpack(out, *model.latent_shape[1:]) if output == "latent" else out
