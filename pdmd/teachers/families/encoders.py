"""Encoders of texts and images in pipelines: models of transformers, loaded as what they are.

A configuration may name more than sizes: an attention kernel of the hub, which is code that is
downloaded and run; an adapter, whose base may lie anywhere. And the library draws weights that a
file lacks at random, and reads the codes of quantised ones as values, with a warning at most. None
of these passes here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch

from pdmd.documents import read_json
from pdmd.extras import require
from pdmd.teachers.families.pipeline_checks import (
    UnusableWeights,
    check_stored_values,
    stored_part,
)

__all__ = ["check_pretrained", "load_encoder"]


def load_encoder(
    name: str, folder: str | Path, part: str, *, dtype: torch.dtype, variant: str | None = None
) -> Any:
    """Loads an encoder of a pipeline.

    Args:
        name: Its class in transformers.
        folder: The pipeline's folder or hub name.
        part: The encoder's place in it.
        dtype: Type of its weights.
        variant: The variant of its weights' files.

    Returns:
        The model; ``None`` if the class is no model, such as a tokenizer's.

    Raises:
        UnusableWeights: If its configuration names code, or an adapter lies over it, or weights
            are missing, in files elsewhere, or quantised in a way that its configuration does not
            state.
    """
    require("diffusers", "transformers")
    import transformers

    cls: Any = getattr(transformers, name, None)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        return None
    check_pretrained(folder, part)
    _check_values(folder, part, variant)
    if cls.config_class is None:
        raise UnusableWeights(f"{folder}/{part} is a {name}, which is no model; name its class")
    more: dict[str, Any] = {} if variant is None else {"variant": variant}
    loaded: Any = cls.from_pretrained(
        str(folder),
        subfolder=part,
        dtype=dtype,
        low_cpu_mem_usage=True,
        use_safetensors=True,
        output_loading_info=True,
        **more,
    )
    model, found = loaded
    missing, shapes = sorted(found["missing_keys"]), sorted(map(str, found["mismatched_keys"]))
    if missing or shapes:
        raise UnusableWeights(
            f"the files of {folder}/{part} lack weights of a {name}, which would be random: "
            f"{', '.join((missing or shapes)[:3])} ({len(missing or shapes)} in all); give the "
            "pipeline whole, or its model_index.json the class that was saved"
        )
    if not Path(folder).is_dir():  # of the hub, and downloaded by now
        _check_values(folder, part, variant)
    return model


def check_pretrained(folder: str | Path, part: str = "") -> None:
    """Checks that a model of transformers leads to no code, adapter or file elsewhere.

    Args:
        folder: A folder or hub name.
        part: The model's place in it.

    Raises:
        UnusableWeights: If it does.
    """
    require("diffusers", "transformers")
    from transformers import PretrainedConfig
    from transformers.utils.peft_utils import find_adapter_config_file

    place = f"{folder}/{part}" if part else str(folder)
    _check_shards(Path(folder) / part)
    here = (Path(folder) / part / "adapter_config.json").is_file()
    if here or find_adapter_config_file(str(folder), subfolder=part) is not None:
        raise UnusableWeights(
            f"{place} has an adapter that is not merged (adapter_config.json); merge it "
            "(merge_and_unload) and save the model again"
        )
    stated, _ = PretrainedConfig.get_config_dict(str(folder), subfolder=part)
    for key, value in _implementations(stated):
        raise UnusableWeights(
            f"the configuration of {place} names code of the hub ({key} = {value:.80}), which is "
            "not run; remove the key"
        )


def _check_values(folder: str | Path, part: str, variant: str | None) -> None:
    """Checks that stored weights are values, unless the library dequantises them itself."""
    from transformers.quantizers.auto import AutoHfQuantizer

    place = stored_part(folder, part)
    config = place / "config.json" if place else None
    stated = read_json(config) if config and config.is_file() else {}
    text = stated.get("text_config")
    quantised = stated.get("quantization_config") or (
        text.get("quantization_config") if isinstance(text, dict) else None
    )
    if not (quantised and AutoHfQuantizer.supports_quant_method(quantised)):
        check_stored_values(folder, part, "model", variant)


def _check_shards(place: Path) -> None:
    """Checks that the index of a local part names files beside it, and nothing elsewhere."""
    for index in sorted(place.glob("*.index*.json")) if place.is_dir() else ():
        content = read_json(index)
        files = content.get("weight_map") if isinstance(content, dict) else None
        names = list(cast(dict[str, Any], files).values()) if isinstance(files, dict) else [None]
        wrong = [f for f in names if not isinstance(f, str) or f != Path(f).name or f == ".."]
        if wrong:
            raise UnusableWeights(
                f"{index} names {wrong[0]!r:.80}, which is no file beside it; download or save "
                "the folder again"
            )


def _implementations(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yields the keys of a configuration that name implementations on the hub, and the names."""
    if isinstance(value, Mapping):
        for key, item in cast(Mapping[str, Any], value).items():
            yield from _implementations(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, str) and "/" in value and "_implementation" in path:
        yield path, value
