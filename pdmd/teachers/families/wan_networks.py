"""Wan's networks, of text to video and of image to video: one, or two and their boundary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from pdmd.diffusion.routers import IntervalRouter
from pdmd.teachers.families.pipelines import build_part, configuration, load_transformer
from pdmd.teachers.families.text import TextTeacher
from pdmd.teachers.families.tokens import check_size
from pdmd.teachers.routed import RoutedTeacher

__all__ = [
    "boundary_router",
    "build_networks",
    "compression_of",
    "default_shift",
    "load_networks",
    "reset_positions",
    "video_shape",
]

T = TypeVar("T", bound=TextTeacher)


def load_networks(
    make: Callable[[Any], T], folder: str | Path, *, meta: bool, **places: Any
) -> T | RoutedTeacher:
    """Loads the transformers of a pipeline.

    Args:
        make: Makes a teacher of one.
        folder: The pipeline's folder or hub name.
        meta: Whether to leave the weights on the meta device.
        places: Type of the weights and where they live.

    Returns:
        A teacher of one network, or of two behind their boundary.

    Raises:
        ValueError: If a part is missing.
    """

    def part(subfolder: str) -> T:
        name = "WanTransformer3DModel"
        teacher = make(load_transformer(name, folder, subfolder, meta=meta, **places))
        reset_positions(teacher.transformer, places["device"])
        return teacher

    ratio = configuration("WanPipeline", folder).get("boundary_ratio")
    if ratio is None:
        return part("transformer")
    return RoutedTeacher([part("transformer"), part("transformer_2")], boundary_router(ratio))


def build_networks(
    make: Callable[[Any], T],
    config: Mapping[str, Any],
    ratio: float,
    *,
    meta: bool,
    seed: int,
    **places: Any,
) -> T | RoutedTeacher:
    """Makes transformers with random weights.

    Args:
        make: Makes a teacher of one.
        config: Their configuration.
        ratio: The lowest time of the first of two networks; 0 makes one.
        meta: Whether to make them without memory, on the meta device.
        seed: Seed of the weights.
        places: Type of the weights and where they live.

    Returns:
        A teacher of one network, or of two behind their boundary.
    """

    def part(seed: int) -> T:
        name = "WanTransformer3DModel"
        teacher = make(build_part(name, config, meta=meta, seed=seed, **places))
        if meta:
            reset_positions(teacher.transformer, places["device"])
        return teacher

    if not ratio:
        return part(seed)
    router = boundary_router(ratio)
    return RoutedTeacher([part(seed), part(seed + 1)], router)


def compression_of(folder: str | Path) -> tuple[int, int, int]:
    """Returns the pixels to one latent in time, height and width of a pipeline's VAE."""
    vae = configuration("AutoencoderKLWan", folder, "vae")
    time, space = vae.get("scale_factor_temporal", 4), vae.get("scale_factor_spatial", 8)
    return time, space, space


def video_shape(
    config: Any, height: int, width: int, frames: int, compression: tuple[int, int, int]
) -> tuple[int, int, int, int]:
    """Returns the shape of a video's latents.

    Args:
        config: The transformer's configuration.
        height: Height of the video.
        width: Its width.
        frames: Its frames.
        compression: Pixels to one latent in time, height and width.

    Raises:
        ValueError: If the size does not fit.
    """
    time, *space = compression
    if frames < 1 or (frames - 1) % time:
        raise ValueError(f"frames are a multiple of {time} and one, got {frames}")
    check_size(space[0] * config.patch_size[1], height=height)
    check_size(space[1] * config.patch_size[2], width=width)
    return config.out_channels, (frames - 1) // time + 1, height // space[0], width // space[1]


def default_shift(height: int, width: int) -> float:
    """Returns the shift recommended: 3 up to 832 x 480 pixels and 5 above."""
    return 3.0 if height * width <= 480 * 832 else 5.0


def reset_positions(transformer: Any, device: str | torch.device) -> None:
    """Computes a transformer's tables of positions again."""
    rope = transformer.rope
    with torch.device(device):
        transformer.rope = type(rope)(rope.attention_head_dim, rope.patch_size, rope.max_seq_len)


def boundary_router(ratio: float) -> IntervalRouter:
    """Routes between two networks as Wan's pipelines do: the boundary is the noisier one's.

    Routers of this library give a boundary to the less noisy side, so theirs is the float32 just
    below; every time that float32 can hold then goes where the pipeline sends it.

    Args:
        ratio: The pipeline's ``boundary_ratio``, in (0, 1).

    Raises:
        ValueError: If it is not.
    """
    if not 0 < ratio < 1:
        raise ValueError(f"a boundary ratio is in (0, 1), got {ratio}")
    below = np.nextafter(np.float32(ratio), np.float32(0))
    return IntervalRouter((1.0, float(below), 0.0))
