"""Tiny pipelines: folders of diffusers' pipelines with small random networks.

A recipe runs over such a folder as over the released one: the same classes load it, encode
prompts, train, decode, and export. Its samples mean nothing.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from pdmd.extras import require
from pdmd.teachers.base import teachers
from pdmd.teachers.families.tiny.encoders import (
    clip_encoder,
    qwen_encoder,
    qwen_image_processor,
    t5_encoder,
    z_image_encoder,
)
from pdmd.teachers.families.tiny.further_families import FURTHER
from pdmd.teachers.families.tiny.tiny_family import TinyFamily, named_parts
from pdmd.teachers.families.tiny.vaes import image_vae, ltx_vae, qwen_vae, wan_vae
from pdmd.teachers.routed import RoutedTeacher

__all__ = ["IMAGE_PROMPTS", "TINY", "TinyFamily", "write_tiny_pipeline"]

IMAGE_PROMPTS = "prompts.jsonl"
"""The file in the folder of an image-to-video pipeline with prompts and their first images."""


_WAN = {
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "ffn_dim": 32,
    "text_dim": 32,
}
_VIDEO = {"height": 32, "width": 32, "frames": 9}
_IMAGE = {"height": 32, "width": 32}
_JOINT = {"num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 12}


_QWEN = {
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "joint_attention_dim": 16,
    "latent_channels": 4,
}


def _wan_encoders() -> dict[str, Any]:
    return named_parts(t5_encoder(32, multilingual=True))


TINY: Mapping[str, TinyFamily] = MappingProxyType(
    {
        "qwen_image": TinyFamily(
            sizes=_QWEN,
            options=_IMAGE,
            vae=qwen_vae,
            encoders=lambda: named_parts(qwen_encoder(16)),
        ),
        "qwen_image_edit": TinyFamily(
            sizes={**_QWEN, "null_length": 5},
            options={**_IMAGE, "reference_height": 32, "reference_width": 64},
            vae=qwen_vae,
            encoders=lambda: named_parts(qwen_encoder(16, sees=True)),
            more={"processor": None},
            processors=lambda: {"processor": qwen_image_processor()},
        ),
        "wan": TinyFamily(
            sizes=_WAN,
            options=_VIDEO,
            vae=wan_vae,
            encoders=_wan_encoders,
            scheduler={"shift": 3.0},
            more={"boundary_ratio": 0.875},
        ),
        "wan_i2v": TinyFamily(
            sizes=_WAN,
            options=_VIDEO,
            vae=wan_vae,
            encoders=_wan_encoders,
            scheduler={"shift": 3.0},
            more={"boundary_ratio": 0.9, "image_encoder": None, "image_processor": None},
        ),
        "flux": TinyFamily(
            sizes={
                **_JOINT,
                "num_layers": 1,
                "num_single_layers": 1,
                "attention_head_dim": 16,
                "latent_channels": 4,
            },
            options=_IMAGE,
            vae=image_vae,
            encoders=lambda: named_parts(clip_encoder(12), t5_encoder(32)),
            scheduler={"use_dynamic_shifting": True},
        ),
        "sd3": TinyFamily(
            sizes={
                **_JOINT,
                "num_layers": 2,
                "attention_head_dim": 8,
                "latent_channels": 4,
                "pos_embed_max_size": 8,
                "qk_norm": "rms_norm",
            },
            options=_IMAGE,
            vae=image_vae,
            encoders=lambda: named_parts(clip_encoder(8, 4), clip_encoder(16, 8), t5_encoder(32)),
            scheduler={"shift": 3.0},
        ),
        "z_image": TinyFamily(
            sizes={
                "num_layers": 1,
                "num_refiner_layers": 1,
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "text_dim": 16,
                "latent_channels": 4,
            },
            options=_IMAGE,
            vae=image_vae,
            encoders=lambda: named_parts(z_image_encoder(16)),
            scheduler={"shift": 3.0},
        ),
        "ltx": TinyFamily(
            sizes={
                "num_layers": 2,
                "num_attention_heads": 2,
                "attention_head_dim": 10,
                "text_dim": 32,
                "latent_channels": 4,
            },
            options={"height": 64, "width": 64, "frames": 17},
            vae=ltx_vae,
            encoders=lambda: named_parts(t5_encoder(32)),
            scheduler={
                "use_dynamic_shifting": True,
                "base_shift": 0.95,
                "max_shift": 2.05,
                "base_image_seq_len": 1024,
                "max_image_seq_len": 4096,
                "shift_terminal": 0.1,
            },
        ),
        **FURTHER,
    }
)
"""The tiny pipelines by the registered name of the teacher."""


def write_tiny_pipeline(name: str, folder: str | Path) -> Path:
    """Writes a tiny pipeline with random weights, the same at every call.

    Args:
        name: The registered name of its teacher, a key of :data:`TINY`.
        folder: Where to write.

    Returns:
        The folder.

    Raises:
        ValueError: If there is no tiny pipeline of this teacher.
    """
    if name not in TINY:
        raise ValueError(
            f"there is no tiny pipeline of the teacher {name!r}; there are of {', '.join(TINY)}"
        )
    require("diffusers", "diffusers", "transformers")
    diffusers: Any = importlib.import_module("diffusers")

    family, folder = TINY[name], Path(folder)
    cls: Any = teachers[name].__self__
    with torch.random.fork_rng():
        built = cls.from_config(**family.sizes, **family.options, random_prompts=1)
        found: Any = built.routed.denoisers if isinstance(built, RoutedTeacher) else [built]
        networks = dict(zip(cls.layout.slots, [part.backbone for part in found], strict=True))
        pipeline = getattr(diffusers, cls.layout.pipeline)(
            **networks,
            **family.encoders(),
            **{part: getattr(diffusers, name)() for part, name in family.components.items()},
            **family.more,
            vae=family.vae(built.latent_shape[0]),
            scheduler=getattr(diffusers, family.scheduler_class)(**family.scheduler),
        )
    pipeline.save_pretrained(folder)
    _write_processors(folder, family)
    if cls.layout.takes_image:
        _write_image_prompts(folder, family.options["height"], family.options["width"])
    return folder


def _write_processors(folder: Path, family: TinyFamily) -> None:
    """Writes image processors, whose classes in transformers may need packages that are absent."""
    found = family.processors()
    if not found:
        return
    index = folder / "model_index.json"
    parts = json.loads(index.read_text())
    for part, processor in found.items():
        processor.save_pretrained(folder / part)
        parts[part] = ["transformers", family.processor_class]
    index.write_text(json.dumps(parts, indent=2) + "\n")


def _write_image_prompts(folder: Path, height: int, width: int, number: int = 4) -> None:
    """Writes gradients as first images, and prompts for them."""
    require("report", "PIL")
    from PIL import Image

    lines: list[str] = []
    for i in range(number):
        column = torch.linspace(0, 1, height)[:, None].expand(height, width)
        row = torch.linspace(0, 1, width)[None].expand(height, width)
        levels = torch.stack([column, row, torch.full((height, width), i / number)], -1)
        Image.fromarray((255 * levels).to(torch.uint8).numpy()).save(folder / f"{i}.png")
        prompt = f"the colours of gradient number {i} drift slowly to the left"
        lines.append(json.dumps({"prompt": prompt, "image": f"{i}.png"}))
    (folder / IMAGE_PROMPTS).write_text("\n".join(lines) + "\n")
