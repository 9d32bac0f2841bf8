"""The pipeline of Qwen-Image-Edit, run on one row at the size of a tiny teacher."""

from unittest import mock

from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as edit_plus

from pdmd.teachers.families.tokens import pack, unpack

SIZE = {"height": 64, "width": 32, "reference_height": 32, "reference_width": 64}


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
