"""The local copy of a store: a TensorDict in memory-mapped files, from which rows are read.

It is flat, entry after entry: ``rows.ENTRY`` holds tokens or rows one after the other,
``starts.ENTRY`` where each row's tokens begin; ``text`` and ``starts.text`` hold the prompts, and
``digests`` with ``order`` find them. The system reads of these files what is asked for and may
drop it again, so memory does not grow with the number of prompts.

A copy is named by its store's digest and made once, by one process while others wait; it is there
whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from pdmd.teachers.conditioning.embeddings.index import Index, Place
from pdmd.teachers.conditioning.embeddings.store_checks import check_files

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = ["StoredTexts", "default_cache", "find", "open_cache"]


def default_cache() -> Path:
    """Returns the folder of local copies, under ``XDG_CACHE_HOME`` or ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "pdmd" / "embeddings"


def open_cache(place: Place, index: Index, folder: Path, *, progress: bool) -> TensorDict:
    """Opens a store's local copy, made first if there is none.

    Args:
        place: The store.
        index: What it holds.
        folder: Where local copies are kept.
        progress: Whether to show a progress bar where one is made.

    Raises:
        ValueError: If a shard is damaged.
        OSError: If the store can't be read, or the copy not written.
    """
    from filelock import FileLock
    from tensordict import TensorDict

    path = folder / index.digest
    if not path.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{index.digest}.lock"):
            if not path.is_dir():  # another process may have made it meanwhile
                draft = folder / f"{index.digest}.partial"
                shutil.rmtree(draft, ignore_errors=True)
                check_files(place, index.shards)
                _fill(place, index, draft, progress)
                draft.rename(path)
    try:
        cache = TensorDict.load_memmap(path)
        ends = cache["starts.text"]
        assert len(ends) == index.rows + 1 and len(cache["text"]) == int(ends[-1])
        assert all(f"rows.{key}" in cache.keys() for key in index.forms)
    except Exception as error:  # of many classes, for files that are cut or gone
        raise ValueError(
            f"{path}, the local copy of {place.url}, is damaged; remove it, and it is made again"
        ) from error
    return cache


def _fill(place: Place, index: Index, folder: Path, progress: bool) -> None:
    from tensordict import TensorDict
    from tqdm import tqdm

    made = TensorDict({}, batch_size=[]).memmap_(folder)

    def room(key: str, dtype: torch.dtype, *shape: int) -> Any:
        return made.make_memmap(key, torch.Size(shape), dtype=dtype)

    flat: dict[str, Any] = {}
    starts: dict[str, Any] = {"text": room("starts.text", torch.int64, index.rows + 1)}
    for key, form in index.forms.items():
        size = index.rows
        if form.packed:
            size = sum(shard.tokens[key] for shard in index.shards)
            starts[key] = room(f"starts.{key}", torch.int64, index.rows + 1)
        flat[key] = room(f"rows.{key}", form.torch_dtype, size, *form.rest)
    text = room("text", torch.uint8, sum(shard.text for shard in index.shards))
    digests = torch.zeros(index.rows - 1, dtype=torch.int64)
    for first in starts.values():
        first[0] = 0
    row, ends = 0, dict.fromkeys([*flat, "text"], 0)
    bar = tqdm(
        total=index.rows - 1,
        desc=f"copying {place.url}",
        unit="prompt",
        disable=None if progress else True,  # none where nobody watches
        dynamic_ncols=True,
    )
    for entry in index.shards:
        shard = entry.read(place)
        if dict(shard.forms) != dict(index.forms):
            raise ValueError(
                f"the embeddings in {place.url} are damaged: {entry.file} has other entries than "
                "the index says; run the same `pdmd embed` again"
            )
        for key, value in shard.tensors.items():
            flat[key][ends[key] : ends[key] + len(value)] = value
            if key in starts:
                through = ends[key] + shard.lengths[key].cumsum(0)
                starts[key][row + 1 : row + 1 + entry.rows] = through
            ends[key] += len(value)
        encoded = [(prompt or "").encode() for prompt in shard.prompts]
        joined = torch.frombuffer(bytearray(b"".join(encoded)) or bytearray(1), dtype=torch.uint8)
        text[ends["text"] : ends["text"] + entry.text] = joined[: entry.text]
        sizes = torch.tensor([len(one) for one in encoded])
        starts["text"][row + 1 : row + 1 + entry.rows] = ends["text"] + sizes.cumsum(0)
        ends["text"] += entry.text
        named = [_digest(p) for p in shard.prompts if p is not None]
        digests[row : row + len(named)] = torch.tensor(named, dtype=torch.int64)
        row += entry.rows
        bar.update(len(named))
    bar.close()
    ordered, order = digests.sort()
    room("digests", torch.int64, len(digests))[:] = ordered
    room("order", torch.int64, len(digests))[:] = order


def find(cache: TensorDict, prompts: Sequence[str]) -> list[int | None]:
    """Returns the rows of prompts, ``None`` for one that is not there."""
    texts = StoredTexts(cache)
    digests, order = cache["digests"], cache["order"]
    asked = torch.tensor([_digest(prompt) for prompt in prompts], dtype=torch.int64)
    found: list[int | None] = []
    for prompt, digest, i in zip(
        prompts, asked.tolist(), torch.searchsorted(digests, asked).tolist(), strict=True
    ):
        row = None
        while i < len(digests) and int(digests[i]) == digest:  # two may share a digest
            if texts[int(order[i])] == prompt:
                row = int(order[i])
                break
            i += 1
        found.append(row)
    return found


class StoredTexts(Sequence[str]):
    """The prompts of a store, read one by one.

    Args:
        cache: The store's local copy.
    """

    def __init__(self, cache: TensorDict) -> None:
        self._text: Tensor = cache["text"]
        self._starts: Tensor = cache["starts.text"]

    def __len__(self) -> int:
        return len(self._starts) - 2  # the last row is that of no prompt

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        begin, end = self._starts[i : i + 2].tolist()
        return bytes(self._text[begin:end].tolist()).decode()


def _digest(prompt: str) -> int:
    data = hashlib.blake2b(prompt.encode(), digest_size=8).digest()
    return int.from_bytes(data, "little", signed=True)
