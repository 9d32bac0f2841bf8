"""The glyphs teacher: a small, packaged text-to-image pipeline of Qwen-Image's classes.

The text encoder reads the Unicode name of a character, the transformer denoises the latents of an
image of 32 x 32 pixels, and the VAE decodes them. The code is that of
:mod:`pdmd.teachers.families.qwen_image`; the weights are pretrained by ``pdmd pretrain glyphs`` on
:mod:`pdmd.teachers.packaged.glyph_world`.
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
    """Qwen-Image's classes on latents of shape (4, 8, 8), for images of 32 x 32 pixels."""

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
        """Loads the packaged pipeline, or one written by ``pdmd pretrain glyphs``.

        Args:
            folder: Folder of the pipeline.
            height: Height of an image in pixels.
            width: Width of an image in pixels.
            prompts: The default prompts of a distillation; the names of all characters if empty.
            dtype: Dtype of all weights.
            arguments: Further arguments of
                :meth:`~pdmd.teachers.families.qwen_image.QwenImageTeacher.from_pretrained`.

        Raises:
            ValueError: If a part is missing, or embeddings were computed by another encoder.
        """
        size = {"height": height, "width": width}
        return super().from_pretrained(
            folder, prompts=prompts or NAMES, dtype=dtype, **size, **arguments
        )
