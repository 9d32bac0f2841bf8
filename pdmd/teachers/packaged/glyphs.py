"""The glyphs teacher: a small text-to-image pipeline of Qwen-Image's classes, which ships.

Its text encoder reads a character's Unicode name, its transformer makes latents of a picture of
32 x 32 pixels, and its VAE decodes them. Everything goes the way of
:mod:`pdmd.teachers.families.qwen_image`; only the weights are small and were trained here, by
``pdmd pretrain glyphs``, on :mod:`pdmd.teachers.packaged.glyph_world`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from pdmd.teachers.base import Teacher
from pdmd.teachers.families.qwen_image import QwenImageTeacher
from pdmd.teachers.packaged.glyph_world import NAMES, SIDE

__all__ = ["GLYPHS", "GlyphsTeacher"]

GLYPHS = Path(str(resources.files("pdmd.teachers.packaged"))) / "weights" / "glyphs"
"""The pipeline's folder in the package."""


class GlyphsTeacher(QwenImageTeacher):
    """Qwen-Image's classes over latents of shape (4, 8, 8), for pictures of 32 x 32 pixels."""

    layout = replace(QwenImageTeacher.layout, folder=str(GLYPHS))

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path = GLYPHS,
        *,
        height: int = SIDE,
        width: int = SIDE,
        prompts: Sequence[str] = (),
        dtype: str | torch.dtype = "float32",
        **arguments: Any,
    ) -> Teacher:
        """Loads the pipeline that ships, or one that ``pdmd pretrain glyphs`` wrote.

        Args:
            folder: Its folder.
            height: Height of a picture.
            width: Width of a picture.
            prompts: What a distillation draws from; by default the names of all characters.
            dtype: Type of all weights.
            arguments: As Qwen-Image's.

        Raises:
            ValueError: If a part is missing, or another encoder made the embeddings.
        """
        size = {"height": height, "width": width}
        return super().from_pretrained(
            folder, prompts=prompts or NAMES, dtype=dtype, **size, **arguments
        )
