"""The glyph world: a synthetic distribution of images of characters in matplotlib's fonts.

A prompt is the Unicode name of a character. Given a prompt, the face (DejaVu Sans, Serif and Mono;
upright, oblique, bold, bold oblique), size, rotation and colour are random and independent. The
diversity within a prompt is therefore known: the twelve faces are equally likely.
"""

from __future__ import annotations

import colorsys
import unicodedata
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdmd.extras import require

__all__ = [
    "CHARACTERS",
    "FACES",
    "NAMES",
    "SIDE",
    "GlyphBank",
    "Glyphs",
    "draw_character",
    "render_masks",
]

CHARACTERS = (
    "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    "\u0393\u0394\u0398\u039b\u039e\u03a0\u03a3\u03a6\u03a8\u03a9"
)
"""Digits, Latin capitals, and the Greek capitals that look like no Latin one."""

NAMES = tuple(unicodedata.name(character) for character in CHARACTERS)
"""The prompts, such as "LATIN CAPITAL LETTER A"."""

FACES = tuple(
    f"DejaVu{family}{style}"
    for family, slant in (("Sans", "Oblique"), ("Serif", "Italic"), ("SansMono", "Oblique"))
    for style in ("", f"-{slant}", "-Bold", f"-Bold{slant}")
)
"""The font faces, by file name."""

SIDE = 32
"""Height and width of an image in pixels."""

FONT_SIZES = (22.0, 32.0)
"""Smallest and largest font size, in pixels."""
MAX_ROTATION = 25.0
"""Largest rotation in either direction, in degrees."""
SUPERSAMPLING = 4
"""Glyphs are rendered this much larger and downsampled, for antialiasing."""


@dataclass(frozen=True)
class Glyphs:
    """A batch of images with their labels.

    Args:
        pictures: Images in [0, 1], float32, with shape :math:`(B, 3, 32, 32)`.
        character: Indices into :data:`CHARACTERS`, int64, with shape :math:`(B)`.
        face: Indices into :data:`FACES`, int64, with shape :math:`(B)`.
    """

    pictures: Tensor
    character: Tensor
    face: Tensor

    def __len__(self) -> int:
        return len(self.pictures)


class GlyphBank:
    """Rendered masks of every character in every face, coloured when they are sampled.

    Args:
        variants: Number of random sizes and rotations per character and face.
        seed: Seed of sizes and rotations.

    Attributes:
        masks: The masks, as :func:`render_masks` returns them.
    """

    def __init__(self, variants: int = 24, *, seed: int = 0) -> None:
        self.masks = render_masks(variants, seed=seed)

    def draw(self, n: int, generator: torch.Generator, character: Tensor | None = None) -> Glyphs:
        """Samples images on white: uniform over faces, over variants and over hues of the ink.

        Args:
            n: Number of images.
            generator: The source of randomness.
            character: Indices of characters, with shape :math:`(n)`; uniform samples if ``None``.
        """

        def uniform(high: int) -> Tensor:
            return torch.randint(high, (n,), generator=generator)

        if character is None:
            character = uniform(len(CHARACTERS))
        face, variant = uniform(len(FACES)), uniform(self.masks.shape[2])
        mask = self.masks[character, face, variant].float() / 255
        ink = _inks()[uniform(len(_inks()))]
        pictures = 1 - mask[:, None] * (1 - ink[:, :, None, None])
        return Glyphs(pictures, character, face)


@cache
def _inks() -> Tensor:
    """Returns colours that contrast with white, evenly spaced in hue, with shape (288, 3)."""
    return torch.tensor(
        [
            colorsys.hsv_to_rgb(hue / 48, saturation, value)
            for hue in range(48)
            for saturation in (0.7, 1.0)
            for value in (0.35, 0.6, 0.85)
        ]
    )


def render_masks(variants: int, *, seed: int = 0) -> Tensor:
    r"""Renders every character in every face, at random sizes and rotations.

    Args:
        variants: Number of sizes and rotations per character and face.
        seed: Seed of sizes and rotations.

    Returns:
        Ink coverage of every pixel, uint8, with shape
        :math:`(\text{characters}, \text{faces}, \text{variants}, 32, 32)`.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (len(CHARACTERS), len(FACES), variants)
    low, high = FONT_SIZES
    size = low + (high - low) * torch.rand(shape, generator=generator)
    rotation = MAX_ROTATION * (2 * torch.rand(shape, generator=generator) - 1)
    masks = torch.empty(*shape, SIDE, SIDE, dtype=torch.uint8)
    for f, face in enumerate(FACES):
        for c, character in enumerate(CHARACTERS):
            for v in range(variants):
                pixels, degrees = float(size[c, f, v]), float(rotation[c, f, v])
                masks[c, f, v] = _mask(character, face, pixels, degrees)
    return masks


def draw_character(character: str, face: str, size: int, width: int) -> Any:
    """Draws a character in the middle of a square.

    Args:
        character: The character.
        face: One of :data:`FACES`.
        size: The font size in pixels.
        width: Height and width of the square in pixels.

    Returns:
        The ink, as a greyscale image of Pillow.
    """
    require("report", "matplotlib", "PIL")
    from PIL import Image, ImageDraw

    canvas = Image.new("L", (width, width))
    font = _font(face, size)
    left, top, right, bottom = font.getbbox(character, anchor="mm")
    centre: Any = (width / 2 - (left + right) / 2, width / 2 - (top + bottom) / 2)
    ImageDraw.Draw(canvas).text(centre, character, fill=255, font=font, anchor="mm")
    return canvas


def _mask(character: str, face: str, size: float, rotation: float) -> Tensor:
    import numpy as np
    from PIL import Image

    scale = SUPERSAMPLING
    canvas = draw_character(character, face, round(size * scale), SIDE * scale)
    canvas = canvas.rotate(rotation, resample=Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(canvas.reduce(scale)))


@cache
def _font(face: str, size: int) -> Any:
    from matplotlib import get_data_path
    from PIL import ImageFont

    path = Path(get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"
    return ImageFont.truetype(str(path), size)
