"""Checks of what a store's index and shards say, before anything is made of it.

A store may come from someone else, and its digests say only that it is what they wrote. So every
value has a type and a range here, and the memory that an index requires is bounded by the sizes of
the files that are there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["check_files", "check_index", "check_shard"]

SHARD = {"file", "rows", "tokens", "text", "size", "sha256"}
DIMENSIONS = 6


def check_index(body: Mapping[str, Any]) -> None:
    """Checks the content of ``index.json``.

    Raises:
        ValueError: If a value is of another type, out of its range, or more than its file holds.
    """
    _need(isinstance(body["teacher"], str), "teacher")
    _need(body["encoder"] is None or isinstance(body["encoder"], str), "encoder")
    entries = _entries(body["entries"])
    imaged = body.get("imaged", [])
    _need(isinstance(imaged, list) and set(imaged) <= entries.keys(), "imaged")
    _need(isinstance(body["shards"], list) and bool(body["shards"]), "shards")
    for number, shard in enumerate(body["shards"]):
        where = f"shard {number}"
        _need(isinstance(shard, dict) and shard.keys() == SHARD, where)
        _need(shard["file"] == f"embeddings-{number:05}.safetensors", f"file of {where}")
        _need(isinstance(shard["sha256"], str), f"sha256 of {where}")
        for key in ("rows", "text", "size"):
            _need(_count(shard[key]), f"{key} of {where}")
        packed = {key for key, (_, shape) in entries.items() if _packed(shape)}
        tokens = shard["tokens"]
        _need(isinstance(tokens, dict) and tokens.keys() == packed, f"tokens of {where}")
        _need(all(_count(n) for n in tokens.values()), f"tokens of {where}")
        size = shard["text"]
        for key, (dtype, shape) in entries.items():
            rest = shape[1:] if key in packed else shape
            rows = tokens.get(key, shard["rows"])
            size += rows * math.prod(n or 0 for n in rest) * dtype.itemsize
            size += 8 * shard["rows"] * (key in packed)
        _need(size <= shard["size"], f"size of {where}, which holds {size} bytes")
    _need(body["prompts"] == sum(shard["rows"] for shard in body["shards"]) - 1, "prompts")


def check_files(place: Any, shards: Iterable[Any]) -> None:
    """Checks that a store's shards are as large as its index says, before space is made for them.

    Args:
        place: The store, with ``fs``, ``root`` and ``url``.
        shards: The shards of the index, with ``file`` and ``size``.

    Raises:
        ValueError: If one is missing or of another size.
    """
    for shard in shards:
        try:
            size = int(place.fs.info(f"{place.root}/{shard.file}")["size"])
        except FileNotFoundError:
            damage = "is missing"
        else:
            damage = f"is truncated to {size} of {shard.size} bytes"
            if size > shard.size:
                damage = f"holds {size} bytes instead of {shard.size}"
            if size == shard.size:
                continue
        raise ValueError(
            f"the embeddings in {place.url} are damaged: {shard.file} {damage}; run the same "
            "`pdmd embed` again, which keeps what is whole"
        )


def check_shard(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Checks a shard's metadata against its tensors.

    Raises:
        ValueError: If they do not agree.
    """
    prompts, entries = about["prompts"], _entries(about["entries"])
    _need(isinstance(prompts, list) and bool(prompts), "prompts")
    _need(all(isinstance(prompt, str) for prompt in prompts if prompt is not None), "prompts")
    _need(about["encoder"] is None or isinstance(about["encoder"], str), "encoder")
    for prompt in prompts:
        (prompt or "").encode()  # a lone surrogate is no text
    for key, (dtype, shape) in entries.items():
        value, rows, rest = tensors[key], len(prompts), shape
        if _packed(shape):
            lengths, rest = tensors[f"{key}.lengths"], shape[1:]
            _need(lengths.dtype == torch.int64 and lengths.shape == (rows,), f"{key}.lengths")
            _need(not lengths.numel() or int(lengths.min()) >= 0, f"{key}.lengths")
            rows = int(lengths.sum())
            _need(shape[0] is None or int(lengths.max()) <= shape[0], f"{key}.lengths")
        _need(value.dtype == dtype and tuple(value.shape) == (rows, *rest), key)


def _entries(described: Any) -> dict[str, tuple[torch.dtype, tuple[int | None, ...]]]:
    _need(isinstance(described, dict) and bool(described), "entries")
    found = {}
    for key, entry in described.items():
        dtype = getattr(torch, entry["dtype"], None)
        _need(isinstance(dtype, torch.dtype) and "." not in key, f"entry {key!r:.40}")
        shape = entry["shape"]
        _need(isinstance(shape, list) and len(shape) <= DIMENSIONS, f"shape of {key!r:.40}")
        for i, n in enumerate(shape):
            _need((n is None and i == 0) or _count(n), f"shape of {key!r:.40}")
        found[key] = (dtype, tuple(shape))
    return found


def _packed(shape: tuple[int | None, ...]) -> bool:
    return shape[:1] == (None,) or len(shape) == 2


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _need(right: bool, what: str) -> None:
    if not right:
        raise ValueError(f"{re.sub(r'[^ -~]', '?', what)} is off")
