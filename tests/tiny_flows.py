"""More model families of the flow kind, tiny and random, and the pipelines of diffusers.

A family is described once: its arguments, its pipeline, how the pipeline is run on a condition,
and how its network lays out latents and counts time.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from pdmd.teachers import FluxTeacher, SD3Teacher
from pdmd.teachers.tokens import pack, unpack
from tests.tiny_families import noise, scheduler, transformers


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family: what differs between one and another.

    Attributes:
        cls: Its teacher.
        registered: Its name.
        arguments: Of ``from_config``.
        pipeline: Makes the pipeline around a teacher, given text encoders.
        run: Runs it and returns latents, or pictures where asked.
        layout: Turns latents into what the network sees.
        sigma: Turns the network's time into ours.
        sign: Of its velocity.
        scheduler: Arguments of the scheduler as released.
        even: Arguments that make the pipeline step evenly before its shift, if it can.
        idle: Parameters that do nothing.
    """

    cls: Any
    registered: str
    arguments: dict[str, Any]
    pipeline: Callable[..., Any]
    run: Callable[..., Any]
    layout: Callable[[torch.Tensor], torch.Tensor] = lambda x: x
    sigma: Callable[[torch.Tensor], torch.Tensor] = lambda t: t
    sign: int = 1
    scheduler: dict[str, Any] = field(default_factory=dict)
    even: dict[str, Any] | None = field(default_factory=dict)
    idle: str = "^$"


def bare(name, **parts):
    """Makes a pipeline whose parts not given are absent."""
    import diffusers

    pipeline = getattr(diffusers, name)(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def image_vae(channels):
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4,
        norm_num_groups=2,
        layers_per_block=1,
        latent_channels=channels,
        sample_size=32,
        scaling_factor=1.5,
        shift_factor=0.06,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()


def shared(null, rows, key="prompt"):
    return null[key].expand(rows, *null[key].shape[1:])


SD3 = {
    "height": 64,
    "width": 48,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 12,
    "latent_channels": 4,
    "pos_embed_max_size": 6,
    "text_length": 7,
    "random_prompts": 3,
}


def sd3_pipeline(teacher, *, text=(None,) * 6, **arguments):
    names = [f"{part}{i}" for i in ("", "_2", "_3") for part in ("tokenizer", "text_encoder")]
    return bare(
        "StableDiffusion3Pipeline",
        transformer=teacher.transformer,
        scheduler=scheduler(**arguments),
        vae=image_vae(teacher.latent_shape[0]),
        **dict(zip(names, text, strict=True)),
    )


def run_sd3(pipeline, teacher, condition, null, *, scale, steps, output="latent", **more):
    rows = len(condition["prompt"])
    return pipeline(
        prompt_embeds=condition["prompt"],
        pooled_prompt_embeds=condition["pooled"],
        negative_prompt_embeds=shared(null, rows),
        negative_pooled_prompt_embeds=shared(null, rows, "pooled"),
        guidance_scale=scale,
        latents=noise(teacher, rows),
        height=teacher.size["height"],
        width=teacher.size["width"],
        num_inference_steps=steps,
        output_type=output,
        **more,
    ).images


SD3_IDLE = r"transformer_blocks\.1\..*add_q_proj|transformer_blocks\.1\..*norm_added_q"

FLUX = {
    "height": 64,
    "width": 48,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 12,
    "latent_channels": 4,
    "text_length": 7,
    "random_prompts": 3,
}


def flux_pipeline(teacher, *, text=(None,) * 4, **arguments):
    names = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
    return bare(
        "FluxPipeline",
        transformer=teacher.transformer,
        scheduler=scheduler(**arguments),
        vae=image_vae(teacher.latent_shape[0]),
        **dict(zip(names, text, strict=True)),
    )


def run_flux(pipeline, teacher, condition, null, *, scale, steps, output="latent", **more):
    rows = len(condition["prompt"])
    out = pipeline(
        prompt_embeds=condition["prompt"],
        pooled_prompt_embeds=condition["pooled"],
        negative_prompt_embeds=shared(null, rows),
        negative_pooled_prompt_embeds=shared(null, rows, "pooled"),
        true_cfg_scale=scale,
        latents=pack(noise(teacher, rows)),
        height=teacher.size["height"],
        width=teacher.size["width"],
        num_inference_steps=steps,
        output_type=output,
        **({"guidance_scale": teacher.guidance_embedded or 7.0} | more),
    ).images
    return unpack(out, *teacher.latent_shape[1:]) if output == "latent" else out


FLOWS = {
    "flux": Family(
        cls=FluxTeacher,
        registered="flux",
        arguments=FLUX,
        pipeline=flux_pipeline,
        run=run_flux,
        layout=pack,
        scheduler={"use_dynamic_shifting": True},
    ),
    "flux_strongly_guided": Family(
        cls=FluxTeacher,
        registered="flux",
        arguments={**FLUX, "guidance_embedded": 9.0},
        pipeline=flux_pipeline,
        run=run_flux,
        layout=pack,
        scheduler={"use_dynamic_shifting": True},
    ),
    "flux_schnell": Family(
        cls=FluxTeacher,
        registered="flux",
        arguments={**FLUX, "guidance_embeds": False},
        pipeline=flux_pipeline,
        run=run_flux,
        layout=pack,
        scheduler={"shift": 1.0},
    ),
    "sd3": Family(
        cls=SD3Teacher,
        registered="sd3",
        arguments=SD3,
        pipeline=sd3_pipeline,
        run=run_sd3,
        sigma=lambda t: t / 1000,
        scheduler={"shift": 3.0},
        even={"sigmas": [1.0, 0.75, 0.5, 0.25]},
        idle=SD3_IDLE,
    ),
    "sd3.5": Family(
        cls=SD3Teacher,
        registered="sd3",
        arguments={**SD3, "qk_norm": "rms_norm", "dual_attention_layers": (0,)},
        pipeline=sd3_pipeline,
        run=run_sd3,
        sigma=lambda t: t / 1000,
        scheduler={"shift": 3.0},
        even={"sigmas": [1.0, 0.75, 0.5, 0.25]},
        idle=SD3_IDLE,
    ),
}


@functools.cache
def flow(name):
    family = FLOWS[name]
    return family.cls.from_config(**family.arguments).requires_grad_(False)


def oracle(name, teacher, x0):
    """Makes the networks know the data: they see their input and their time, and nothing else."""
    family = FLOWS[name]
    target = family.layout(x0)

    def forward(self, hidden_states, *, timestep, **kwargs):
        hidden_states = hidden_states[:, : target.shape[1]]
        sigma = family.sigma(timestep).reshape(-1, *[1] * (hidden_states.ndim - 1))
        return (family.sign * (hidden_states - target) / sigma,)

    for part in transformers(teacher):
        part.forward = functools.partial(forward, part)
