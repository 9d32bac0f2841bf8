"""Embedding prompts into a store, shard by shard."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pdmd.teachers.conditioning.embeddings.index import (
    Index,
    Shard,
    ShardInfo,
    StoreFolder,
    shard_name,
)
from pdmd.teachers.conditioning.embeddings.packing import FieldSpec, field_specs, pack
from pdmd.teachers.conditioning.image_prompts import ImagePrompt, name_of
from pdmd.teachers.conditioning.prompts import Prompts

__all__ = ["embed"]

Packed: TypeAlias = tuple[dict[str, Tensor], dict[str, Tensor]]
"""Packed tensors and lengths of rows, as :func:`~.packing.pack` returns them."""


@torch.no_grad()
def embed(
    encoder: Prompts,
    prompts: Sequence[str] | Sequence[ImagePrompt],
    url: str,
    *,
    teacher: str = "",
    batch_size: int = 16,
    shard_size: int = 512,
    overwrite: bool = False,
    progress: bool = True,
) -> Index:
    """Encodes prompts and the null prompt into a store.

    Shards are written atomically, so a call resumes an interrupted one: intact shards are kept,
    missing or damaged shards are computed. Of a list to which prompts were added at the end, only
    those are encoded.

    Args:
        encoder: The encoder.
        prompts: The prompts, without repetition: texts or, for an image-to-video encoder, texts
            with their first images.
        url: URL or path of the store, on any fsspec file system.
        teacher: Registered name of the teacher of the encoder, recorded in the index.
        batch_size: Number of prompts encoded at once.
        shard_size: Number of prompts per shard.
        overwrite: Whether to remove existing embeddings of the store first.
        progress: Whether to show a progress bar.

    Returns:
        The index of the store.

    Raises:
        ValueError: If there are no prompts, a prompt is repeated or not of the type of the
            encoder, an image cannot be read, a size is below 1, or the store has embeddings of
            another encoder, or of prompts that the list does not begin with, or another process
            writes to its folder.
        OSError: If the store cannot be written.
    """
    from tqdm import tqdm

    by_key = _by_key(
        prompts, bool(encoder.image_keys), batch_size=batch_size, shard_size=shard_size
    )
    names = list(by_key)
    store, fingerprint = StoreFolder.of(url, writing=True), encoder.fingerprint()
    parts: list[tuple[str | None, ...]] = [
        tuple(names[i : i + shard_size]) for i in range(0, len(names), shard_size)
    ]
    parts[-1] = (*parts[-1], None)
    specs: dict[str, FieldSpec] = {}
    infos: list[ShardInfo | None] = []
    begun: dict[int, Shard] = {}  # the last shard of a shorter list
    null: Packed | None = None
    with contextlib.ExitStack() as within:
        within.enter_context(store.locked())
        if overwrite:
            store.clear()
        existing = store.shards()
        if not set(existing) <= {shard_name(i) for i in range(len(parts))}:
            raise _mismatch(store, "other prompts")
        shown = {"desc": "embed", "unit": "prompt", "disable": not progress}
        bar = within.enter_context(tqdm(total=len(prompts), dynamic_ncols=True, **shown))
        for i, part in enumerate(parts):
            infos.append(None)
            if shard_name(i) not in existing:
                continue
            data = store.read(shard_name(i)) or b""
            try:
                shard = Shard.loads(data)
            except ValueError as error:
                bar.write(f"{shard_name(i)} {error}; computing it again")
                continue
            _check_same(store, shard, part, fingerprint)
            specs = _common_specs(store, specs, shard.specs)
            count = _count(shard.prompts)
            if count < len(shard.prompts):
                null = shard.rows(count, count + 1)
            if shard.prompts == part:
                infos[i] = shard.info(i, data)
            else:
                begun[i] = shard
            bar.update(count)
        if fingerprint is None and not existing:
            encoder.encode([None])  # downloads the files of an encoder on the hub
            fingerprint = encoder.fingerprint()
        # A begun shard is written last: until then a call that is interrupted loses no embedding.
        for i, part in sorted(enumerate(parts), key=lambda pair: pair[0] in begun):
            if infos[i] is None:
                known = [] if i not in begun else [begun[i].rows(0, _count(begun[i].prompts))]
                todo = part[_count(begun[i].prompts) :] if i in begun else part
                if null is not None and todo[-1:] == (None,):
                    todo, end = todo[:-1], [null]
                else:
                    end = []
                encoded = _encode(store, encoder, by_key, todo, batch_size, specs, bar)
                packed, specs = [*known, *encoded[0], *end], encoded[1]
                tensors, lengths = (
                    {k: torch.cat([p[j][k] for p in packed]) for k in packed[0][j]} for j in (0, 1)
                )
                shard = Shard(part, fingerprint, specs, tensors, lengths)
                specs = dict(shard.specs)
                data = shard.dumps()
                store.write(shard_name(i), data)
                infos[i] = shard.info(i, data)
        shards = tuple(info for info in infos if info is not None)
        index = Index(teacher, fingerprint, specs, shards, tuple(encoder.image_keys))
        index.write(store)
    return index


def _encode(
    store: StoreFolder,
    encoder: Prompts,
    by_key: Mapping[str, Any],
    part: tuple[str | None, ...],
    batch_size: int,
    specs: Mapping[str, FieldSpec],
    bar: Any,
) -> tuple[list[Packed], dict[str, FieldSpec]]:
    keys = [key for key in part if key is not None]
    batches: list[list[str | None]] = [
        list(keys[i : i + batch_size]) for i in range(0, len(keys), batch_size)
    ]
    if len(keys) < len(part):
        batches.append([None])
    packed = []
    for batch in batches:
        prompts = [None if key is None else by_key[key] for key in batch]
        condition = encoder.encode(prompts).cpu()
        if batch == [None]:
            for key in encoder.image_keys:
                spec = specs[key]
                shape = (1, *(int(size or 0) for size in spec.shape))
                condition[key] = torch.zeros(shape, dtype=spec.torch_dtype)
        specs = _common_specs(store, specs, field_specs(condition))
        packed.append(pack(condition, specs))
        bar.update(len(batch) - batch.count(None))
    return packed, dict(specs)


def _count(part: Sequence[str | None]) -> int:
    return len(part) - part.count(None)


def _common_specs(
    store: StoreFolder, known: Mapping[str, FieldSpec], found: Mapping[str, FieldSpec]
) -> dict[str, FieldSpec]:
    """Returns the specs of all conditions of a store, or raises if two batches differ."""
    for key in known.keys() | found.keys() if known else ():
        if known.get(key) != found.get(key):
            raise ValueError(
                f"the field {key!r} is {found.get(key, 'absent')} for some prompts of {store.url} "
                f"and {known.get(key, 'absent')} for others; use the dtype of the existing shards "
                "or replace the store with --overwrite (overwrite=True)"
            )
    return dict(found)


def _check_same(
    store: StoreFolder, shard: Shard, part: tuple[str | None, ...], fingerprint: str | None
) -> None:
    """Raises unless a shard has a part's prompts or, if it was a last one, begins with them."""
    if shard.encoder != fingerprint:
        found, expected = ((f or "unknown")[:12] for f in (shard.encoder, fingerprint))
        raise _mismatch(store, f"embeddings of another encoder ({found}, this one is {expected})")
    kept = shard.prompts[: _count(shard.prompts)]
    begun = None in shard.prompts and part[: len(kept)] == kept
    if shard.prompts != part and not begun:
        raise _mismatch(
            store,
            "other prompts, or another shard size: prompts can only be added at the end of a list",
        )


def _mismatch(store: StoreFolder, what: str) -> ValueError:
    return ValueError(
        f"{store.url} has {what}; choose another --out, or replace the store with --overwrite "
        "(overwrite=True)"
    )


def _by_key(
    prompts: Sequence[str] | Sequence[ImagePrompt], with_images: bool, **sizes: int
) -> dict[str, str | ImagePrompt]:
    """Returns the prompts by the keys they are stored by."""
    if isinstance(prompts, str) or not prompts:
        raise ValueError(f"prompts must be a list of at least one prompt, got {prompts!r}")
    by_key: dict[str, str | ImagePrompt] = {}
    for prompt in prompts:
        if not isinstance(prompt, ImagePrompt if with_images else str):
            kind = "an ImagePrompt (a text with its first image)" if with_images else "a text"
            raise ValueError(f"a prompt must be {kind}, got {prompt!r}")
        name = name_of(prompt)
        if name in by_key:
            raise ValueError(f"the prompt {prompt!r} is repeated; pass each prompt once")
        by_key[name] = prompt
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    return by_key
