r"""Latents as tokens of :math:`2 \times 2`, and shifts of time that depend on their number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pdmd.typing import Latents

__all__ = [
    "DynamicShift",
    "check_frames",
    "check_head",
    "check_size",
    "image_positions",
    "pack",
    "packed_config",
    "packed_shape",
    "reset_positions",
    "rotary_axes",
    "scheduled_shift",
    "unpack",
]


@dataclass(frozen=True, kw_only=True)
class DynamicShift:
    r"""A shift of time that depends on the number of tokens.

    .. math:: k = e^{\mu}, \qquad \mu = \mu_0 + (\mu_1 - \mu_0) \frac{n - n_0}{n_1 - n_0}

    Attributes:
        base_shift: :math:`\mu_0`.
        max_shift: :math:`\mu_1`.
        base_image_seq_len: :math:`n_0`.
        max_image_seq_len: :math:`n_1`.
    """

    base_shift: float = 0.5
    max_shift: float = 0.9
    base_image_seq_len: int = 256
    max_image_seq_len: int = 8192

    def __call__(self, tokens: int) -> float:
        """Returns :math:`k` for a number of tokens."""
        length = self.max_image_seq_len - self.base_image_seq_len
        slope = (self.max_shift - self.base_shift) / length
        return math.exp(self.base_shift + slope * (tokens - self.base_image_seq_len))


def scheduled_shift(scheduler: Mapping[str, Any], tokens: int) -> float:
    """Returns the shift of time that a scheduler's configuration states.

    Args:
        scheduler: The configuration of a ``FlowMatchEulerDiscreteScheduler``, whose absent keys
            have that class's defaults, or of a solver of diffusers with a ``flow_shift``.
        tokens: The number of tokens of a sample.

    Raises:
        ValueError: If a value is no number.
    """
    if not scheduler.get("use_dynamic_shifting", False):
        return float(
            _number(scheduler, "flow_shift" if "flow_shift" in scheduler else "shift", 1.0)
        )
    defaults = {
        "base_shift": 0.5,
        "max_shift": 1.15,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
    }
    shift = DynamicShift(**{key: _number(scheduler, key, v) for key, v in defaults.items()})
    k = shift(tokens)
    return math.log(k) if scheduler.get("time_shift_type") == "linear" else k


def _number(scheduler: Mapping[str, Any], key: str, default: float) -> Any:
    value = scheduler.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(
            f"the scheduler's configuration has {key} = {value!r:.40}, which is no number; "
            "correct it, or download the pipeline again"
        )
    return value


def check_head(attention_head_dim: int, least: int) -> None:
    """Checks that the dimension of an attention head fits rotary positions.

    Raises:
        ValueError: If it is odd or below the minimum that the family splits among its axes.
    """
    if attention_head_dim < least or attention_head_dim % 2:
        raise ValueError(
            f"attention_head_dim must be even and at least {least}, got {attention_head_dim}"
        )


def rotary_axes(
    attention_head_dim: int, released: tuple[int, int, int], *, least: int
) -> tuple[int, int, int]:
    """Splits a head's dimension among the axes of rotary positions, as the released network does.

    Args:
        attention_head_dim: The dimension of a head.
        released: The released split, whose last two axes are equal.
        least: The smallest dimension that can be split.

    Raises:
        ValueError: If the dimension is odd or too small.
    """
    check_head(attention_head_dim, least)
    side = 2 * (released[1] // 2 * attention_head_dim // sum(released))
    return attention_head_dim - 2 * side, side, side


def check_frames(multiple: int, frames: int) -> None:
    """Checks that a video's frames are a multiple of its compression in time, and one.

    Raises:
        ValueError: If they are not.
    """
    if frames < 1 or (frames - 1) % multiple:
        raise ValueError(f"frames must be a multiple of {multiple} plus one, got {frames}")


def check_size(multiple: int, **sizes: int) -> None:
    """Checks that every size is a positive multiple.

    Raises:
        ValueError: If one is not.
    """
    for name, size in sizes.items():
        if size < 1 or size % multiple:
            raise ValueError(f"{name} must be a multiple of {multiple}, got {size}")


def pack(x: Latents) -> Tensor:
    """Turns (B, C, H, W) into tokens (B, H/2 * W/2, 4C)."""
    tokens = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # (B, C, H/2, 2, W/2, 2)
    return tokens.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Latents:
    """Turns tokens (B, H/2 * W/2, 4C) into (B, C, H, W)."""
    x = tokens.unflatten(2, (-1, 2, 2)).unflatten(1, (height // 2, width // 2))
    return x.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def image_positions(height: int, width: int, device: torch.device) -> Tensor:
    """Returns the positions of an image's tokens: zero, row and column, with shape (H * W, 3)."""
    rows = torch.arange(height, dtype=torch.float32, device=device)
    columns = torch.arange(width, dtype=torch.float32, device=device)
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], -1).flatten(0, 1)


def reset_positions(backbone: Any, device: str | torch.device, **arguments: Any) -> None:
    """Recomputes the table of positions of a network's patches.

    Args:
        backbone: A network of diffusers with a ``PatchEmbed``.
        device: Where the table lives.
        arguments: Of the ``PatchEmbed``, beside its sizes.
    """
    config, embed = backbone.config, backbone.pos_embed
    with torch.device(device):
        table = type(embed)(
            height=config.sample_size,
            width=config.sample_size,
            patch_size=config.patch_size,
            in_channels=1,  # of the patches' projection, which is dropped
            embed_dim=backbone.inner_dim,
            **arguments,
        )
    embed.pos_embed = table.pos_embed.to(device=device)


def packed_shape(
    config: Any, *, height: int, width: int, compression: int
) -> tuple[int, int, int]:
    """Returns the shape of latents of which a network's token has 2 x 2.

    Args:
        config: The network's configuration, with ``in_channels`` of a token.
        height: Height of an image in pixels.
        width: Its width.
        compression: Pixels to one latent, along either side.

    Returns:
        Channels, rows and columns.

    Raises:
        ValueError: If tokens do not tile the image.
    """
    check_size(2 * compression, height=height, width=width)
    return config.in_channels // 4, height // compression, width // compression


def packed_config(
    *, attention_head_dim: int, latent_channels: int, **sizes: Any
) -> dict[str, Any]:
    """Returns the configuration of a network over tokens of 2 x 2 latents.

    Args:
        attention_head_dim: Width of a head, divided over the axes of its rotary positions.
        latent_channels: Channels of a latent.
        sizes: Further keys.
    """
    return {
        **sizes,
        "in_channels": 4 * latent_channels,
        "attention_head_dim": attention_head_dim,
        "axes_dims_rope": rotary_axes(attention_head_dim, (16, 56, 56), least=8),
    }
