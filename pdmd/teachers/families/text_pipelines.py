"""Pipelines of diffusers without their networks, to encode prompts with."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pdmd.extras import require
from pdmd.teachers.families.encoders import load_encoder
from pdmd.teachers.families.pipeline_checks import check_index, check_weights, variant_of
from pdmd.teachers.families.pipelines import configuration, dtype_argument, dtype_of, reporting

__all__ = ["NoSafetyChecker", "load_image_processor", "load_text_encoder"]

NOT_TEXT = (
    "transformer",
    "transformer_2",
    "unet",
    "vae",
    "safety_checker",
    "feature_extractor",
    "image_encoder",
    "processor",
    "audio_vae",
    "vocoder",
    "prompt_enhancer",
    "duration_head",
)
"""Parts of pipelines that do not encode texts."""


class NoSafetyChecker:
    """Stands where a pipeline's constructor takes a safety checker, which texts do not need."""


def load_text_encoder(
    name: str,
    folder: str | Path,
    *,
    optional: Sequence[str] = (),
    vae: bool = False,
    given: Mapping[str, Any] | None = None,
    dtype: str | torch.dtype = "bfloat16",
    device: str | torch.device = "cpu",
) -> Any:
    """Loads a pipeline without its networks and VAE, to encode prompts with.

    Args:
        name: The pipeline's class.
        folder: Its folder or hub name.
        optional: Parts that are ``None`` where the folder has none.
        vae: Whether to load the VAE too, which encodes images.
        given: Parts in place of the folder's, such as one that its constructor takes and texts
            do not need.
        dtype: Type of the text encoder's weights.
        device: Where they live.

    Raises:
        ValueError: If a part is missing.
    """
    require("diffusers", "diffusers")
    import diffusers

    cls = getattr(diffusers, name)
    known = inspect.signature(cls.__init__).parameters
    visual = ("vae", "image_encoder", "feature_extractor") if vae else ()
    unread = [part for part in NOT_TEXT if part not in visual]
    absent: dict[str, Any] = {part: None for part in unread if part in known}
    if "unet" in known:
        absent["scheduler"] = None
    if "requires_safety_checker" in known:
        absent["requires_safety_checker"] = False
    index = configuration(name, folder)
    absent |= {part: None for part in optional if (index.get(part) or [None])[0] is None}
    check_index(folder)
    check_weights(folder, ("text_encoder*", *(p for p in visual if p != "feature_extractor")))
    variant = variant_of(folder, "text_encoder", "model")
    more: dict[str, Any] = {"use_safetensors": True, **({"variant": variant} if variant else {})}
    with reporting(folder, "text_encoder"):
        encoders = {
            part: load_encoder(value[1], folder, part, dtype=dtype_of(dtype), variant=variant)
            for part, value in index.items()
            if isinstance(value, list) and value[0] == "transformers" and part not in absent
        }
        parts = absent | {part: model for part, model in encoders.items() if model is not None}
        parts |= dict(given or {})
        pipeline = cls.from_pretrained(str(folder), **dtype_argument(dtype), **more, **parts)
    return pipeline.to(device)


def load_image_processor(name: str, folder: str | Path, subfolder: str) -> Any:
    """Loads an image processor of transformers, in its form that needs PIL and no torchvision.

    Args:
        name: Its class.
        folder: The pipeline's folder or hub name.
        subfolder: The part's place in it.

    Raises:
        ValueError: If it is missing.
    """
    require("diffusers", "transformers", "PIL")
    import transformers

    cls: Any = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
    with reporting(folder, subfolder):
        return cls.from_pretrained(str(folder), subfolder=subfolder)
