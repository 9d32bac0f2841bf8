"""Pipelines of diffusers without their networks, to encode prompts with."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pdmd.extras import require
from pdmd.teachers.families.encoders import load_encoder
from pdmd.teachers.families.pipeline_checks import (
    UnusableWeights,
    check_index,
    check_stored_values,
    check_weights,
    variant_of,
)
from pdmd.teachers.families.pipelines import configuration, dtype_argument, dtype_of, reporting
from pdmd.teachers.families.vaes import load_vae

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

NO_VOCABULARY = r".*config\.json|special_tokens_map\.json|added_tokens\.json|chat_template.*|\..*"
"""Files of tokenizers besides their vocabulary."""


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
    stated = {
        part: value[1]
        for part, value in index.items()
        if isinstance(value, list) and value[1] is not None and part not in absent
    }
    parts = absent | _load_models(stated, index, folder, dtype_of(dtype)) | dict(given or {})
    more = _other_variants([part for part in stated if part not in parts], folder)
    with reporting(folder):
        pipeline = cls.from_pretrained(
            str(folder), **dtype_argument(dtype), use_safetensors=True, **more, **parts
        )
    _check_vocabularies(pipeline, folder)
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


def _load_models(
    stated: Mapping[str, str], index: Mapping[str, Any], folder: str | Path, dtype: torch.dtype
) -> dict[str, Any]:
    """Loads the models of a pipeline one by one, each in the variant that it is saved in."""
    models: dict[str, Any] = {}
    for part, name in stated.items():
        if part == "vae":
            models[part] = load_vae(name, folder, dtype=dtype)()
        elif index[part][0] == "transformers":
            with reporting(folder, part):
                _check_vocabulary_file(name, folder, part)
                variant = variant_of(folder, part, "model")
                model = load_encoder(name, folder, part, dtype=dtype, variant=variant)
            models |= {} if model is None else {part: model}
    return models


def _other_variants(parts: Sequence[str], folder: str | Path) -> dict[str, str]:
    """Returns the argument for the variant of parts that the pipeline loads, which it checks."""
    found: set[str] = set()
    for part in parts:
        with reporting(folder, part):
            variant = variant_of(folder, part, "diffusion_pytorch_model")
            check_stored_values(folder, part, "diffusion_pytorch_model", variant)
        found |= {variant} if variant else set()
    return {"variant": max(found)} if found else {}


def _check_vocabulary_file(name: str, folder: str | Path, part: str) -> None:
    """Checks that a tokenizer whose class reads a vocabulary has a file of one."""
    import transformers

    cls: Any = getattr(transformers, name, None)
    place = Path(folder) / part
    if not (Path(folder).is_dir() and getattr(cls, "vocab_files_names", None)):
        return
    names = [path.name for path in place.iterdir()] if place.is_dir() else []
    if all(re.fullmatch(NO_VOCABULARY, name) for name in names):
        raise UnusableWeights(_without_vocabulary(folder, part))


def _check_vocabularies(pipeline: Any, folder: str | Path) -> None:
    """Checks that the tokenizers of a pipeline tell texts apart."""
    from transformers import PreTrainedTokenizerBase

    for part, module in pipeline.components.items():
        is_one = isinstance(module, PreTrainedTokenizerBase)
        tokenizer = module if is_one else getattr(module, "tokenizer", None)
        if isinstance(tokenizer, PreTrainedTokenizerBase) and not _tells_apart(tokenizer):
            raise UnusableWeights(_without_vocabulary(folder, part))


def _tells_apart(tokenizer: Any) -> bool:
    """Returns whether two words have different tokens: letters, or the vocabulary's own words."""
    if _distinct(tokenizer, "abcdefgh"):
        return True
    special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    own = [token for token in tokenizer.get_vocab() if token not in special][:1000]
    return _distinct(tokenizer, (tokenizer.convert_tokens_to_string([token]) for token in own))


def _distinct(tokenizer: Any, words: Iterable[str]) -> bool:
    kinds = (
        frozenset(tokenizer(word.strip(), add_special_tokens=False)["input_ids"])
        for word in words
        if word.strip()
    )
    first = next(kinds, None)
    return any(kind != first for kind in kinds)


def _without_vocabulary(folder: str | Path, part: str) -> str:
    return (
        f"the tokenizer {folder}/{part} has no vocabulary, so that all texts would be the same; "
        "download or save the pipeline again"
    )
