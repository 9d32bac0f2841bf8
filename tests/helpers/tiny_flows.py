"""Tiny flow families: Flux, Stable Diffusion 3, Z-Image, LTX-Video and Wan image to video.

A family is described once: its arguments, its pipeline, how the pipeline is run on a condition,
and how its network lays out latents and counts time.
"""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from pdmd.teachers import (
    FluxTeacher,
    LTXTeacher,
    SD3Teacher,
    WanImageTeacher,
    ZImageTeacher,
)
from pdmd.teachers.families.tokens import pack
from tests.helpers.tiny_encoders import clip_vision, picture, t5
from tests.helpers.tiny_families import transformers
from tests.helpers.tiny_pipelines import (
    FLUX,
    IMAGE,
    LTX,
    LTX_SCHEDULER,
    SD3,
    SD3_IDLE,
    WAN_I2V,
    Z_IMAGE,
    flux_pipeline,
    ltx_layout,
    ltx_pipeline,
    run_flux,
    run_ltx,
    run_sd3,
    run_wan_i2v,
    run_z_image,
    sd3_pipeline,
    wan_i2v_pipeline,
    z_image_pipeline,
)


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
        listed: Whether it reads lists, and its time and velocity run backwards.
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
    listed: bool = False
    scheduler: dict[str, Any] = field(default_factory=dict)
    even: dict[str, Any] | None = field(default_factory=dict)
    idle: str = "^$"


FLOWS = {
    "wan_i2v": Family(
        cls=WanImageTeacher,
        registered="wan_i2v",
        arguments=WAN_I2V,
        pipeline=wan_i2v_pipeline,
        run=run_wan_i2v,
        sigma=lambda t: t / 1000,
        scheduler={"shift": 3.0},
        even=None,
    ),
    "wan_i2v_2.1": Family(
        cls=WanImageTeacher,
        registered="wan_i2v",
        arguments={**WAN_I2V, **IMAGE, "boundary_ratio": 0.0},
        pipeline=wan_i2v_pipeline,
        run=run_wan_i2v,
        sigma=lambda t: t / 1000,
        scheduler={"shift": 3.0},
        even=None,
    ),
    "wan_i2v_5b": Family(
        cls=WanImageTeacher,
        registered="wan_i2v",
        arguments={
            **WAN_I2V,
            "boundary_ratio": 0.0,
            "replaces_first_frame": True,
            "spatial_compression": 16,
            "height": 64,
            "width": 32,
        },
        pipeline=wan_i2v_pipeline,
        run=run_wan_i2v,
        sigma=lambda t: t.amax(1) / 1000,
        scheduler={"shift": 3.0},
        even=None,
    ),
    "ltx": Family(
        cls=LTXTeacher,
        registered="ltx",
        arguments=LTX,
        pipeline=ltx_pipeline,
        run=run_ltx,
        layout=ltx_layout,
        sigma=lambda t: t / 1000,
        scheduler=LTX_SCHEDULER,
    ),
    "ltx_of_12_frames_a_second": Family(
        cls=LTXTeacher,
        registered="ltx",
        arguments={**LTX, "frame_rate": 12.0},
        pipeline=functools.partial(ltx_pipeline, timed=True),
        run=run_ltx,
        layout=ltx_layout,
        sigma=lambda t: t / 1000,
        scheduler=LTX_SCHEDULER,
    ),
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
    "z_image": Family(
        cls=ZImageTeacher,
        registered="z_image",
        arguments=Z_IMAGE,
        pipeline=z_image_pipeline,
        run=run_z_image,
        layout=lambda x: x[:, :, None].expand(6, *[-1] * 4),
        listed=True,
        scheduler={"shift": 3.0},
    ),
    "z_image_normalised": Family(
        cls=ZImageTeacher,
        registered="z_image",
        arguments={**Z_IMAGE, "cfg_normalization": 1.1},
        pipeline=z_image_pipeline,
        run=run_z_image,
        layout=lambda x: x[:, :, None].expand(6, *[-1] * 4),
        listed=True,
        scheduler={"shift": 3.0},
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
    kind = FLOWS[name]
    target = kind.layout(x0)

    def forward(self, hidden_states, *, timestep, **kwargs):
        hidden_states = hidden_states[:, : target.shape[1]]
        sigma = kind.sigma(timestep).reshape(-1, *[1] * (hidden_states.ndim - 1))
        return ((hidden_states - target) / sigma,)

    def backwards(self, images, t, captions, **kwargs):
        return ([(x0 - x) / (1 - s) for x, x0, s in zip(images, target, t, strict=False)],)

    for part in transformers(teacher):
        part.forward = functools.partial(backwards if kind.listed else forward, part)


def saved(tmp_path, name):
    """Writes a pipeline's folder with encoders, and a file of two prompts with images."""
    seen = clip_vision(16) if name == "wan_i2v_2.1" else (None, None)
    pipeline = FLOWS[name].pipeline(flow(name), text=(*t5(32), *seen), shift=3.0)
    pipeline.save_pretrained(tmp_path / "pipeline")
    pictures = [picture(0), picture(1)]
    lines = []
    for i, (image, text) in enumerate(zip(pictures, ["a cat", "a dog"], strict=True)):
        image.save(tmp_path / f"{i}.png")
        lines.append(json.dumps({"text": text, "image": f"{i}.png"}))
    (tmp_path / "prompts.jsonl").write_text("\n\n".join(lines))
    return pipeline, pictures
