"""Embedding: from prompts and an encoder to a store, shard by shard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pdmd.teachers.conditioning.embeddings.index import Index, Place, Shard, ShardEntry, shard_name
from pdmd.teachers.conditioning.embeddings.rows import Form, forms_of, pack
from pdmd.teachers.conditioning.image_prompts import ImagePrompt, name_of
from pdmd.teachers.conditioning.prompts import Prompts

__all__ = ["embed"]


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
    """Encodes prompts, and no prompt, into a store.

    A shard is there whole or not at all, so one call goes on where another was interrupted: shards
    that are whole are kept, those that are missing or damaged are made.

    Args:
        encoder: What encodes.
        prompts: The prompts, each once: texts or, for an encoder that takes them, texts with
            their first images.
        url: The store, a path or URL (:data:`pdmd.files.PROTOCOLS`).
        teacher: The registered name of the teacher whose encoder it is, to be written down.
        batch_size: Prompts encoded at a time.
        shard_size: Prompts in a shard.
        overwrite: Whether to remove other embeddings that are there.
        progress: Whether to show a progress bar.

    Returns:
        What the store holds.

    Raises:
        ValueError: If a prompt is not of the encoder's kind or comes twice, its image cannot be
            read, there are none, a size is below 1, or the store holds embeddings of other
            prompts or by another encoder.
        OSError: If the store cannot be written.
    """
    from tqdm import tqdm

    known = _by_name(prompts, bool(encoder.imaged), batch_size=batch_size, shard_size=shard_size)
    names = list(known)
    place, fingerprint = Place.of(url, writing=True), encoder.fingerprint()
    if overwrite:
        place.clear()
    parts: list[tuple[str | None, ...]] = [
        tuple(names[i : i + shard_size]) for i in range(0, len(names), shard_size)
    ]
    parts[-1] = (*parts[-1], None)
    there = place.shards()
    if not set(there) <= {shard_name(i) for i in range(len(parts))}:
        raise _other(place, "other prompts")
    forms: dict[str, Form] = {}
    entries: list[ShardEntry | None] = []
    bar = tqdm(
        total=len(prompts), desc="embed", unit="prompt", disable=not progress, dynamic_ncols=True
    )
    with bar:
        for i, part in enumerate(parts):
            entries.append(None)
            if shard_name(i) not in there:
                continue
            data = place.read(shard_name(i)) or b""
            try:
                shard = Shard.loads(data)
            except ValueError as error:
                bar.write(f"{shard_name(i)} {error}; made again")
                continue
            _check_same(place, shard, part, fingerprint)
            forms = _agreed(place, forms, shard.forms)
            entries[i] = shard.entry(i, data)
            bar.update(len(part) - part.count(None))
        if fingerprint is None and not there:
            encoder.encode([None])  # of a hub name, whose files come with their first use
            fingerprint = encoder.fingerprint()
        for i, part in enumerate(parts):
            if entries[i] is None:
                shard = _encode(place, encoder, known, part, fingerprint, batch_size, forms, bar)
                forms = dict(shard.forms)
                data = shard.dumps()
                place.write(shard_name(i), data)
                entries[i] = shard.entry(i, data)
    made = tuple(e for e in entries if e is not None)
    index = Index(teacher, fingerprint, forms, made, tuple(encoder.imaged))
    index.write(place)
    return index


def _encode(
    place: Place,
    encoder: Prompts,
    known: Mapping[str, Any],
    part: tuple[str | None, ...],
    fingerprint: str | None,
    batch_size: int,
    forms: Mapping[str, Form],
    bar: Any,
) -> Shard:
    named = [prompt for prompt in part if prompt is not None]
    batches: list[list[str | None]] = [
        list(named[i : i + batch_size]) for i in range(0, len(named), batch_size)
    ]
    if len(named) < len(part):
        batches.append([None])
    packed = []
    for batch in batches:
        condition = encoder.encode([None if name is None else known[name] for name in batch]).cpu()
        if batch == [None]:
            for key in encoder.imaged:
                form = forms[key]
                shape = (1, *(int(size or 0) for size in form.shape))
                condition[key] = torch.zeros(shape, dtype=form.torch_dtype)
        forms = _agreed(place, forms, forms_of(condition))
        packed.append(pack(condition, forms))
        bar.update(len(batch) - batch.count(None))
    tensors, lengths = (
        {k: torch.cat([p[j][k] for p in packed]) for k in packed[0][j]} for j in (0, 1)
    )
    return Shard(part, fingerprint, forms, tensors, lengths)


def _agreed(place: Place, known: Mapping[str, Form], found: Mapping[str, Form]) -> dict[str, Form]:
    """Returns the forms that a store's conditions share."""
    for key in known.keys() | found.keys() if known else ():
        if known.get(key) != found.get(key):
            raise ValueError(
                f"the entry {key!r} is {found.get(key, 'absent')} in some prompts' embeddings and "
                f"{known.get(key, 'absent')} in others of {place.url}; use the dtype that it was "
                "begun with, or replace it with --overwrite (overwrite=True)"
            )
    return dict(found)


def _check_same(
    place: Place, shard: Shard, part: tuple[str | None, ...], fingerprint: str | None
) -> None:
    if shard.encoder != fingerprint:
        made, now = ((f or "unknown")[:12] for f in (shard.encoder, fingerprint))
        raise _other(place, f"embeddings by another encoder ({made}, this one is {now})")
    if shard.prompts != part:
        raise _other(place, "other prompts, or another number of them in a shard")


def _other(place: Place, what: str) -> ValueError:
    return ValueError(
        f"{place.url} holds {what}; choose another --out, or replace it with --overwrite "
        "(overwrite=True)"
    )


def _by_name(
    prompts: Sequence[str] | Sequence[ImagePrompt], imaged: bool, **sizes: int
) -> dict[str, str | ImagePrompt]:
    """Returns the prompts by the names that they are stored by."""
    if isinstance(prompts, str) or not prompts:
        raise ValueError(f"embed a list of at least one prompt, got {prompts!r}")
    known: dict[str, str | ImagePrompt] = {}
    for prompt in prompts:
        if not isinstance(prompt, ImagePrompt if imaged else str):
            what = "an ImagePrompt, a text with its first image" if imaged else "a text"
            raise ValueError(f"a prompt is {what}, got {prompt!r}")
        name = name_of(prompt)
        if name in known:
            raise ValueError(f"the prompt {prompt!r} comes twice; give each once")
        known[name] = prompt
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is at least 1, got {size}")
    return known
