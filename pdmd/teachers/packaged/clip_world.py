r"""The clip world: short videos of characters that move in a straight line.

A prompt is the Unicode name of a character. Given a prompt, the face, the size and the motion are
random and independent: the ink of frame :math:`f` is that of the glyph, centred at

.. math:: p_f = p + \left(f - \tfrac{F - 1}{2}\right) v, \qquad v = s \, (\cos a, \sin a)

with the speed :math:`s` in pixels per frame and the direction :math:`a` uniform in their ranges,
and :math:`p` near the middle of the frame. The law of the motion within a prompt is therefore
known. Every pixel holds the exact mean of the supersampled glyph over its area, wherever the glyph
lies, so that sub-pixel motion is rendered.
"""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass

import torch
from torch import Tensor

from pdmd.teachers.packaged.glyph_world import FACES, draw_character

__all__ = [
    "CLIP_CHARACTERS",
    "CLIP_FRAMES",
    "CLIP_NAMES",
    "CLIP_SIDE",
    "SPEEDS",
    "ClipBank",
    "Clips",
    "render_clips",
]

CLIP_CHARACTERS = "2457ACEFHKLMPTUXZ\u0394\u03a3\u03a9"
"""Twenty characters that differ at 16 x 16 pixels."""

CLIP_NAMES = tuple(unicodedata.name(character) for character in CLIP_CHARACTERS)
"""The prompts, such as "LATIN CAPITAL LETTER A"."""

CLIP_FRAMES = 8
"""Frames of a clip."""

CLIP_SIDE = 16
"""Height and width of a frame in pixels."""

SPEEDS = (0.2, 0.9)
"""Lowest and highest speed, in pixels per frame."""

JITTER = 0.5
"""Largest distance of the middle of the path from that of the frame, on each axis, in pixels."""
FONT_SIZES = (36, 38, 40, 42, 44)
"""The font sizes, in supersampled pixels."""
SUPERSAMPLING = 4
"""Glyphs are rendered this much larger."""


@dataclass(frozen=True)
class Clips:
    """A batch of clips with their labels.

    Args:
        pictures: Dark characters on white, in [0, 1], float32, with shape
            :math:`(B, 1, 8, 16, 16)`.
        character: Indices into :data:`CLIP_CHARACTERS`, int64, with shape :math:`(B)`.
        face: Indices into :data:`~pdmd.teachers.packaged.glyph_world.FACES`, int64, with shape
            :math:`(B)`.
        velocity: Pixels per frame to the right and downwards, with shape :math:`(B, 2)`.
    """

    pictures: Tensor
    character: Tensor
    face: Tensor
    velocity: Tensor

    def __len__(self) -> int:
        return len(self.pictures)


class ClipBank:
    r"""Rendered masks of every character in every face and size, moved when they are sampled.

    Attributes:
        masks: Ink coverage, uint8, with shape
            :math:`(\text{characters}, \text{faces}, \text{sizes}, 64, 64)`.
    """

    def __init__(self) -> None:
        import numpy as np

        width = CLIP_SIDE * SUPERSAMPLING
        shape = (len(CLIP_CHARACTERS), len(FACES), len(FONT_SIZES))
        self.masks = torch.empty(*shape, width, width, dtype=torch.uint8)
        for c, character in enumerate(CLIP_CHARACTERS):
            for f, face in enumerate(FACES):
                for s, size in enumerate(FONT_SIZES):
                    drawn = np.array(draw_character(character, face, size, width))
                    self.masks[c, f, s] = torch.from_numpy(drawn)

    def draw(self, n: int, generator: torch.Generator, character: Tensor | None = None) -> Clips:
        """Samples clips: uniform over faces, sizes, speeds and directions.

        Args:
            n: Number of clips.
            generator: The source of randomness.
            character: Indices of characters, with shape :math:`(n)`; uniform samples if ``None``.
        """

        def uniform(high: int) -> Tensor:
            return torch.randint(high, (n,), generator=generator)

        if character is None:
            character = uniform(len(CLIP_CHARACTERS))
        face, size = uniform(len(FACES)), uniform(len(FONT_SIZES))
        low, high = SPEEDS
        speed = low + (high - low) * torch.rand(n, generator=generator)
        angle = 2 * math.pi * torch.rand(n, generator=generator)
        velocity = speed[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
        middle = JITTER * (2 * torch.rand(n, 2, generator=generator) - 1)
        time = torch.arange(CLIP_FRAMES) - (CLIP_FRAMES - 1) / 2
        path = middle[:, None] + time[:, None] * velocity[:, None]
        ink = render_clips(self.masks[character, face, size].float() / 255, path)
        return Clips(1 - ink[:, None], character, face, velocity)


def render_clips(masks: Tensor, path: Tensor) -> Tensor:
    r"""Renders glyphs at positions that need not be whole pixels.

    A frame is :math:`Y_f M X_f^\top` with the supersampled mask :math:`M`, and the overlap of
    every moved row (column) with those of the frame, as a share of the latter, in :math:`Y_f`
    (:math:`X_f`).

    Args:
        masks: Supersampled ink coverage, with shape :math:`(B, 4H, 4W)`.
        path: Displacements to the right and downwards in pixels, with shape :math:`(B, F, 2)`.

    Returns:
        The ink coverage of every frame, with shape :math:`(B, F, H, W)`; ink that leaves the frame
        is lost.
    """

    def overlap(shift: Tensor, size: int) -> Tensor:
        near = torch.arange(size) + SUPERSAMPLING * shift[..., None]  # (B, F, size)
        row = SUPERSAMPLING * torch.arange(size // SUPERSAMPLING)[:, None]
        near = near[..., None, :]
        inside = torch.minimum(near + 1, row + SUPERSAMPLING) - torch.maximum(near, row)
        return inside.clamp(min=0) / SUPERSAMPLING

    height, width = masks.shape[1:]
    rows, columns = overlap(path[..., 1], height), overlap(path[..., 0], width)
    return (rows @ masks[:, None] @ columns.mT).clamp(0, 1)
