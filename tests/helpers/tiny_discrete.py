"""Tiny families of discrete timesteps, and the pipelines of diffusers around them."""

import functools

import torch

from pdmd.teachers import (
    DDPMTeacher,
    DiTTeacher,
    SDXLTeacher,
    StableDiffusionTeacher,
)
from pdmd.teachers.families.discrete_timesteps import SCALED_LINEAR
from tests.helpers.tiny_families import (
    noise,
)

TINY = {"channels": 8, "norm_num_groups": 4, "layers_per_block": 1}


SD = {**TINY, "heads": 2, "cross_attention_dim": 16, "height": 64, "width": 48}


XL = {
    **TINY,
    "deep_layers": 1,
    "middle_layers": 1,
    "cross_attention_dim": 24,
    "pooled_dim": 12,
    "size_dim": 4,
    "height": 64,
    "width": 48,
}


DIT = {
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "sample_size": 8,
}


FAMILIES = {
    "sd": (StableDiffusionTeacher, {**SD, "random_prompts": 2}),
    "sd_v": (StableDiffusionTeacher, {**SD, "version": 2, "random_prompts": 2}),
    "sd_zero": (
        StableDiffusionTeacher,
        {**SD, "version": 2, "rescale_betas_zero_snr": True, "random_prompts": 2},
    ),
    "sdxl": (SDXLTeacher, {**XL, "random_prompts": 2}),
    "ddpm": (DDPMTeacher, {**TINY, "height": 16, "width": 24}),
    "ddpm_sigma": (DDPMTeacher, {**TINY, "learned_variance": True, "prediction_type": "sample"}),
    "dit": (DiTTeacher, DIT),
}


@functools.cache
def family(name):
    cls, arguments = FAMILIES[name]
    teacher = cls.from_config(**arguments).requires_grad_(False)
    if name == "dit":  # its last layer starts at a prediction that labels hardly move
        for parameter in teacher.parameters():
            parameter.mul_(2)
    return teacher


def network_of(teacher):
    return teacher.backbone


def scheduler(teacher, **more):
    from diffusers import DDIMScheduler

    betas = {"beta_schedule": "linear"} if isinstance(teacher, DDPMTeacher | DiTTeacher) else {}
    names = {"x0": "sample"}
    return DDIMScheduler(
        **{
            **(betas or SCALED_LINEAR),
            "prediction_type": names.get(teacher.kind, teacher.kind),
            "timestep_spacing": "trailing",
            "clip_sample": False,
            "set_alpha_to_one": True,
            "steps_offset": 0 if betas else 1,
            "rescale_betas_zero_snr": float(teacher.levels.alphas_cumprod[-1]) == 0,
            **more,
        }
    )


def vae():
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=2,
        scaling_factor=0.3,
    ).eval()


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sd_pipeline(teacher, *, text=(None, None), **more):
    from diffusers import StableDiffusionPipeline

    return quiet(
        StableDiffusionPipeline(
            vae=vae(),
            tokenizer=text[0],
            text_encoder=text[1],
            unet=teacher.backbone,
            scheduler=scheduler(teacher, **more),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def xl_pipeline(teacher, *, text=(None,) * 4, force_zeros=True, **more):
    from diffusers import StableDiffusionXLPipeline

    if text[3] is None:
        text = (*text[:3], Pooling(teacher))
    return quiet(
        StableDiffusionXLPipeline(
            vae=vae(),
            tokenizer=text[0],
            text_encoder=text[1],
            tokenizer_2=text[2],
            text_encoder_2=text[3],
            unet=teacher.backbone,
            scheduler=scheduler(teacher, **more),
            force_zeros_for_empty_prompt=force_zeros,
            add_watermarker=False,
        )
    )


class Pooling(torch.nn.Module):
    """Stands for a text encoder where embeddings are given; its pooled dimension is asked for."""

    def __init__(self, teacher):
        super().__init__()
        unet = teacher.backbone.config
        dim = unet.projection_class_embeddings_input_dim - 6 * unet.addition_time_embed_dim
        self.config = type("config", (), {"projection_dim": dim})
        self.dtype, self.device = torch.float32, torch.device("cpu")


def class_pipeline(teacher, **more):
    from diffusers import DiTPipeline

    return quiet(DiTPipeline(teacher.backbone, vae(), scheduler(teacher, **more)))


def ddim_pipeline(teacher, **more):
    from diffusers import DDIMPipeline

    return quiet(DDIMPipeline(teacher.backbone, scheduler(teacher, **more)))


def theirs(name, teacher, condition, null, *, scale=1.0, steps=4, **more):
    """What the family's pipeline makes of the teacher's noise."""
    rows = 2 if condition is None else len(condition)
    x = noise(teacher, rows)
    common = {"num_inference_steps": steps, "guidance_scale": scale, "output_type": "latent"}
    if name.startswith("sd"):
        text = {
            "prompt_embeds": condition["prompt"],
            "negative_prompt_embeds": null["prompt"].expand(rows, -1, -1),
            "latents": x,
            "height": teacher.options["height"],
            "width": teacher.options["width"],
        }
        if name == "sdxl":
            text["pooled_prompt_embeds"] = condition["pooled"]
            text["negative_pooled_prompt_embeds"] = null["pooled"].expand(rows, -1)
            return xl_pipeline(teacher, **more)(**text, **common).images
        return sd_pipeline(teacher, **more)(**text, **common).images
    if name == "dit":
        pipeline = class_pipeline(teacher, **more)
        seen = []
        pipeline.vae.decode = lambda x: seen.append(x) or type("out", (), {"sample": x})
        labels = condition["label"].tolist()
        with noise_is(pipeline, x):
            pipeline(labels, scale, num_inference_steps=steps, output_type="pt")
        return seen[0] * pipeline.vae.config.scaling_factor
    pipeline = ddim_pipeline(teacher, **more)
    seen = []
    step = pipeline.scheduler.step

    def kept(output, t, x, *args, **kwargs):
        if output.shape != x.shape:  # this pipeline does not know learned variances
            output = output[:, : x.shape[1]]
        out = step(output, t, x, *args, **kwargs)
        seen.append(out.prev_sample)
        return out

    pipeline.scheduler.step = kept
    with noise_is(pipeline, x):
        pipeline(batch_size=rows, num_inference_steps=steps, output_type="np")
    return seen[-1]


class noise_is:
    """Makes a pipeline that takes no latents start from given ones."""

    def __init__(self, pipeline, x):
        import importlib

        self.module = importlib.import_module(type(pipeline).__module__)
        self.x = x

    def __enter__(self):
        self.before = self.module.randn_tensor
        self.module.randn_tensor = lambda *args, **kwargs: self.x

    def __exit__(self, *error):
        self.module.randn_tensor = self.before


def conditions(teacher):
    if isinstance(teacher, DDPMTeacher):
        return None, None
    return teacher.encode(teacher.prompts[:2]), teacher.encode([None])


def decoded(x):
    with torch.no_grad():
        return (vae().decode(x / 0.3).sample / 2 + 0.5).clamp(0, 1)
