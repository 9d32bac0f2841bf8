"""The world of glyphs: pictures of characters in the fonts that matplotlib ships.

A prompt is a character's Unicode name, and it has many right pictures: twelve faces (DejaVu Sans,
Serif and Mono; upright, oblique, bold, bold oblique), any size, turn and colour. Diversity within
a prompt is therefore real, and known: every face is equally likely.
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

__all__ = ["CHARACTERS", "FACES", "NAMES", "SIDE", "GlyphBank", "Glyphs", "render_masks"]

CHARACTERS = (
    "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    "\u0393\u0394\u0398\u039b\u039e\u03a0\u03a3\u03a6\u03a8\u03a9"
)
"""Digits, capital letters, and the Greek capitals that no Latin one looks like."""

NAMES = tuple(unicodedata.name(character) for character in CHARACTERS)
"""The prompts, such as "LATIN CAPITAL LETTER A"."""

FACES = tuple(
    f"DejaVu{family}{style}"
    for family, slant in (("Sans", "Oblique"), ("Serif", "Italic"), ("SansMono", "Oblique"))
    for style in ("", f"-{slant}", "-Bold", f"-Bold{slant}")
)
"""The fonts, by the names of their files."""

SIDE = 32
"""Height and width of a picture in pixels."""

SIZES = (22.0, 32.0)
"""Smallest and largest size of a font, in pixels."""
TURN = 25.0
"""Largest turn, in degrees, either way."""
FINER = 4
"""Glyphs are drawn this much larger and scaled down, so that edges are smooth."""


@dataclass(frozen=True)
class Glyphs:
    """Pictures and what is on them.

    Attributes:
        pictures: In [0, 1], float32, with shape :math:`(B, 3, 32, 32)`.
        character: Index in :data:`CHARACTERS`, int64, with shape :math:`(B)`.
        face: Index in :data:`FACES`, int64, with shape :math:`(B)`.
    """

    pictures: Tensor
    character: Tensor
    face: Tensor

    def __len__(self) -> int:
        return len(self.pictures)


class GlyphBank:
    """Shapes of every character in every face, coloured as they are drawn.

    Args:
        variants: Sizes and turns of each.
        seed: Seed of these.
    """

    def __init__(self, variants: int = 24, *, seed: int = 0) -> None:
        self.masks = render_masks(variants, seed=seed)

    def draw(self, n: int, generator: torch.Generator, character: Tensor | None = None) -> Glyphs:
        """Draws pictures: face, size and turn evenly, ink of any hue, on white.

        Args:
            n: How many.
            generator: Source of the draws.
            character: Which characters, with shape :math:`(n)`; by default even draws.
        """

        def even(high: int) -> Tensor:
            return torch.randint(high, (n,), generator=generator)

        if character is None:
            character = even(len(CHARACTERS))
        face, variant = even(len(FACES)), even(self.masks.shape[2])
        mask = self.masks[character, face, variant].float() / 255
        ink = _inks()[even(len(_inks()))]
        pictures = 1 - mask[:, None] * (1 - ink[:, :, None, None])
        return Glyphs(pictures, character, face)


@cache
def _inks() -> Tensor:
    """Colours that stand out on white, evenly over hue, with shape (288, 3)."""
    return torch.tensor(
        [
            colorsys.hsv_to_rgb(hue / 48, saturation, value)
            for hue in range(48)
            for saturation in (0.7, 1.0)
            for value in (0.35, 0.6, 0.85)
        ]
    )


def render_masks(variants: int, *, seed: int = 0) -> Tensor:
    r"""Renders every character in every face, at random sizes and turns.

    Args:
        variants: Pictures of each character in each face.
        seed: Seed of sizes and turns.

    Returns:
        How much of every pixel is ink, uint8, with shape
        :math:`(\text{characters}, \text{faces}, \text{variants}, 32, 32)`.
    """
    from matplotlib import get_data_path

    fonts = Path(get_data_path()) / "fonts" / "ttf"
    generator = torch.Generator().manual_seed(seed)
    shape = (len(CHARACTERS), len(FACES), variants)
    size = SIZES[0] + (SIZES[1] - SIZES[0]) * torch.rand(shape, generator=generator)
    turn = TURN * (2 * torch.rand(shape, generator=generator) - 1)
    masks = torch.empty(*shape, SIDE, SIDE, dtype=torch.uint8)
    for f, face in enumerate(FACES):
        for c, character in enumerate(CHARACTERS):
            for v in range(variants):
                points, degrees = float(size[c, f, v]), float(turn[c, f, v])
                masks[c, f, v] = _mask(fonts / f"{face}.ttf", character, points, degrees)
    return masks


def _mask(font: Path, character: str, size: float, turn: float) -> Tensor:
    import numpy as np
    from PIL import Image, ImageDraw

    wide = SIDE * FINER
    canvas = Image.new("L", (wide, wide))
    middle: Any = (wide / 2, wide / 2)
    drawn = _font(font, round(size * FINER))
    left, top, right, bottom = drawn.getbbox(character, anchor="mm")
    middle = (wide / 2 - (left + right) / 2, wide / 2 - (top + bottom) / 2)
    ImageDraw.Draw(canvas).text(middle, character, fill=255, font=drawn, anchor="mm")
    canvas = canvas.rotate(turn, resample=Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(canvas.reduce(FINER)))


@cache
def _font(path: Path, size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.truetype(str(path), size)
