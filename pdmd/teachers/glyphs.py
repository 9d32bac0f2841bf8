"""The glyphs teacher: a small text-to-image pipeline of Qwen-Image's classes, which ships.

Its text encoder reads a character's Unicode name, its transformer makes latents of a picture of
32 x 32 pixels, and its VAE decodes them. Everything goes the way of
:mod:`pdmd.teachers.qwen_image`; only the weights are small and were trained here, by
``pdmd teach glyphs``, on :mod:`pdmd.teachers.glyph_world`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from pdmd.teachers.base import Teacher
from pdmd.teachers.glyph_world import NAMES, SIDE
from pdmd.teachers.layouts import QWEN_IMAGE
from pdmd.teachers.prompts import Prompts
from pdmd.teachers.qwen_image import QwenImageTeacher

__all__ = ["GLYPHS", "GlyphsTeacher"]

GLYPHS = Path(str(resources.files("pdmd.teachers"))) / "weights" / "glyphs"
"""The pipeline's folder in the package."""


class GlyphsTeacher(QwenImageTeacher):
    """Qwen-Image's classes over latents of shape (4, 8, 8), for pictures of 32 x 32 pixels."""

    layout = replace(QWEN_IMAGE, folder=str(GLYPHS))

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path = GLYPHS,
        *,
        height: int = SIDE,
        width: int = SIDE,
        prompts: Sequence[str] = (),
        embeddings: Prompts | None = None,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device = "cpu",
        meta: bool = False,
    ) -> GlyphsTeacher:
        """Loads the pipeline that ships, or one that ``pdmd teach glyphs`` wrote.

        Args:
            folder: Its folder.
            height: Height of a picture.
            width: Width of a picture.
            prompts: What a distillation draws from; by default the names of all characters.
            embeddings: Turns prompts into conditions in place of the text encoder.
            dtype: Type of all weights.
            device: Where they live.
            meta: Whether to leave the transformer's weights on the meta device.

        Raises:
            ValueError: If a part is missing, or another encoder made the embeddings.
        """
        teacher: Any = super().from_pretrained(
            folder,
            height=height,
            width=width,
            prompts=prompts or NAMES,
            embeddings=embeddings,
            dtype=dtype,
            device=device,
            meta=meta,
        )
        return teacher

    @classmethod
    def from_arguments(
        cls,
        *,
        folder: str = "",
        prompts: str = "",
        embeddings: str = "",
        cache: str = "",
        meta: bool = False,
        **arguments: Any,
    ) -> Teacher:
        """Makes the teacher from plain values, as configurations hold them.

        Args:
            folder: The pipeline's folder; by default the one that ships.
            prompts: A file of prompts to draw from; by default the names of all characters.
            embeddings: A store of prompt embeddings to use in the place of the text encoder.
            cache: Where the local copy of a store is kept.
            meta: Whether to leave the weights on the meta device.
            arguments: Passed on to :meth:`from_pretrained`.

        Raises:
            ValueError: If a part, a file or a store is missing.
        """
        return super().from_arguments(
            folder=folder or str(GLYPHS),
            prompts=prompts,
            embeddings=embeddings,
            cache=cache,
            meta=meta,
            **arguments,
        )
