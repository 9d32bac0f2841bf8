"""Sharded safetensors weights in the layout of diffusers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from pdmd.distributed.weight_files import WholeTensor, write_tensors

__all__ = ["check_range", "parse_size", "write_weights"]

STEM = "diffusion_pytorch_model"
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def parse_size(text: str) -> int:
    """Parses a size such as ``"10GB"``, in bytes.

    Raises:
        ValueError: If it is not a size.
    """
    found = re.fullmatch(r"([0-9]*\.?[0-9]+) ?([KMG]?)B?", text.strip(), re.IGNORECASE)
    size = float(found[1]) * UNITS[found[2].upper()] if found else 0.0
    if not 1 <= size < math.inf:
        raise ValueError(f"expected a size such as 10GB or 500MB, got {text!r:.60}")
    return int(size)


def check_range(name: str, value: Tensor, dtype: torch.dtype) -> None:
    """Checks that finite values stay finite in another type.

    Args:
        name: What they are called, for the error.
        value: The values.
        dtype: The type.

    Raises:
        ValueError: If some do not.
    """
    if dtype != torch.float16 or value.dtype == dtype or not value.numel():
        return
    largest = float(value.abs().max())
    if math.isfinite(largest) and largest > torch.finfo(dtype).max:
        raise ValueError(
            f"{name} has a value of size {largest:.6g}, and float16 has none above "
            f"{torch.finfo(dtype).max:.0f}; export with --dtype bfloat16"
        )


def write_weights(
    folder: Path,
    weights: Mapping[str, Tensor],
    *,
    types: Callable[[str, Tensor], torch.dtype],
    shard: int,
    tell: Callable[[int], object] = lambda written: None,
    changes: Mapping[str, Callable[[], Tensor]] | None = None,
    values: Mapping[str, Callable[[], Tensor]] = MappingProxyType({}),
) -> None:
    """Writes weights in shards, with one weight in memory at a time.

    Args:
        folder: The destination, which must exist.
        weights: The weights by name; of those in ``values`` only shape and dtype are used.
        types: Returns the dtype of a weight on disk.
        shard: The maximum bytes of a shard; a larger weight gets its own shard.
        tell: Called with the bytes of each written weight.
        changes: Functions that compute what is added to some weights, in float32.
        values: Functions that read weights which are not in memory.

    Raises:
        ValueError: If a value is beyond the range of its dtype on disk.
    """
    shards = _split(weights, types, shard)
    index: dict[str, str] = {}

    def reader(name: str) -> Callable[[], Tensor]:
        def read() -> Tensor:
            value = values[name]() if name in values else weights[name].detach()
            if changes and name in changes:
                value = value.float() + changes[name]().detach().to(value.device)
            check_range(name, value, types(name, weights[name]))
            return value

        return read

    for i, names in enumerate(shards):
        suffix = f"-{i + 1:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        file = f"{STEM}{suffix}.safetensors"
        tensors = [
            WholeTensor(name, tuple(value.shape), types(name, value), reader(name))
            for name, value in ((name, weights[name]) for name in names)
        ]
        write_tensors(folder / file, tensors, metadata={"format": "pt"}, tell=tell)
        index.update(dict.fromkeys(names, file))
    if len(shards) > 1:
        total = sum(_bytes(name, value, types) for name, value in weights.items())
        content = {"metadata": {"total_size": total}, "weight_map": index}
        path = folder / f"{STEM}.safetensors.index.json"
        path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _split(
    weights: Mapping[str, Tensor], types: Callable[[str, Tensor], torch.dtype], shard: int
) -> Sequence[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, value in weights.items():
        size = _bytes(name, value, types)
        if shards[-1] and filled + size > shard:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _bytes(name: str, value: Tensor, types: Callable[[str, Tensor], torch.dtype]) -> int:
    return value.numel() * types(name, value).itemsize
