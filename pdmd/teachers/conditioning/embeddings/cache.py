"""The local copy of a store: a TensorDict in memory-mapped files.

For each field of a condition, ``rows.KEY`` has the concatenated tokens or rows, and
``starts.KEY`` the index of the first token of each row; ``text`` and ``starts.text`` have the
prompts, and ``digests`` with ``order`` is an index of them. The operating system reads the pages
that are accessed and may evict them, so memory does not grow with the number of prompts.

A copy is named by the digest of its store, and written once and atomically, by one process while
others wait.
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

from pdmd.teachers.conditioning.embeddings.index import Index, StoreFolder
from pdmd.teachers.conditioning.embeddings.store_checks import check_files

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = ["StoredTexts", "default_cache", "find_rows", "open_cache"]


def default_cache() -> Path:
    """Returns the default folder of local copies, in ``XDG_CACHE_HOME`` or ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "pdmd" / "embeddings"


def open_cache(store: StoreFolder, index: Index, folder: Path, *, progress: bool) -> TensorDict:
    """Opens the local copy of a store; creates it if it does not exist.

    Args:
        store: The store.
        index: Its index.
        folder: The folder of local copies.
        progress: Whether to show a progress bar while a copy is created.

    Returns:
        The local copy.

    Raises:
        ValueError: If a shard is damaged.
        OSError: If the store cannot be read, or the copy cannot be written.
    """
    from filelock import FileLock
    from tensordict import TensorDict

    path = folder / index.digest
    if not path.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{index.digest}.lock"):
            if not path.is_dir():  # another process may have created it while this one waited
                partial = folder / f"{index.digest}.partial"
                shutil.rmtree(partial, ignore_errors=True)
                check_files(store, index.shards)
                _copy(store, index, partial, progress)
                partial.rename(path)
    try:
        cache = TensorDict.load_memmap(path)
        ends = cache["starts.text"]
        assert len(ends) == index.rows + 1 and len(cache["text"]) == int(ends[-1])
        assert all(f"rows.{key}" in cache.keys() for key in index.specs)
    except Exception as error:  # of many classes, for files that are truncated or missing
        raise ValueError(
            f"{path}, the local copy of {store.url}, is damaged; remove it, and it is copied again"
        ) from error
    return cache


def _copy(store: StoreFolder, index: Index, folder: Path, progress: bool) -> None:
    from tensordict import TensorDict
    from tqdm import tqdm

    copy = TensorDict({}, batch_size=[]).memmap_(folder)

    def allocate(key: str, dtype: torch.dtype, *shape: int) -> Any:
        return copy.make_memmap(key, torch.Size(shape), dtype=dtype)

    flat: dict[str, Any] = {}
    starts: dict[str, Any] = {"text": allocate("starts.text", torch.int64, index.rows + 1)}
    for key, spec in index.specs.items():
        size = index.rows
        if spec.packed:
            size = sum(shard.tokens[key] for shard in index.shards)
            starts[key] = allocate(f"starts.{key}", torch.int64, index.rows + 1)
        flat[key] = allocate(f"rows.{key}", spec.torch_dtype, size, *spec.rest)
    text = allocate("text", torch.uint8, sum(shard.text for shard in index.shards))
    digests = torch.zeros(index.rows - 1, dtype=torch.int64)
    for first in starts.values():
        first[0] = 0
    row, ends = 0, dict.fromkeys([*flat, "text"], 0)
    bar = tqdm(
        total=index.rows - 1,
        desc=f"copying {store.url}",
        unit="prompt",
        disable=None if progress else True,  # None: on a terminal only
        dynamic_ncols=True,
    )
    for info in index.shards:
        shard = info.read(store)
        if dict(shard.specs) != dict(index.specs):
            raise ValueError(
                f"the embeddings in {store.url} are damaged: {info.file} has other fields than "
                "the index states; run the same `pdmd embed` again"
            )
        for key, value in shard.tensors.items():
            flat[key][ends[key] : ends[key] + len(value)] = value
            if key in starts:
                stops = ends[key] + shard.lengths[key].cumsum(0)
                starts[key][row + 1 : row + 1 + info.rows] = stops
            ends[key] += len(value)
        encoded = [(prompt or "").encode() for prompt in shard.prompts]
        joined = torch.frombuffer(bytearray(b"".join(encoded)) or bytearray(1), dtype=torch.uint8)
        sizes = torch.tensor([len(prompt) for prompt in encoded])
        text[ends["text"] : ends["text"] + info.text] = joined[: info.text]
        starts["text"][row + 1 : row + 1 + info.rows] = ends["text"] + sizes.cumsum(0)
        ends["text"] += info.text
        found = [_digest(prompt) for prompt in shard.prompts if prompt is not None]
        digests[row : row + len(found)] = torch.tensor(found, dtype=torch.int64)
        row += info.rows
        bar.update(len(found))
    bar.close()
    ordered, order = digests.sort()
    allocate("digests", torch.int64, len(digests))[:] = ordered
    allocate("order", torch.int64, len(digests))[:] = order


def find_rows(cache: TensorDict, prompts: Sequence[str]) -> list[int | None]:
    """Looks prompts up in a local copy.

    Args:
        cache: The local copy of a store.
        prompts: The prompts, by the keys they are stored by.

    Returns:
        The row of each prompt; ``None`` if the store does not have it.
    """
    texts = StoredTexts(cache)
    digests, order = cache["digests"], cache["order"]
    queries = torch.tensor([_digest(prompt) for prompt in prompts], dtype=torch.int64)
    found: list[int | None] = []
    for prompt, digest, i in zip(
        prompts, queries.tolist(), torch.searchsorted(digests, queries).tolist(), strict=True
    ):
        row = None
        while i < len(digests) and int(digests[i]) == digest:  # digests may collide
            if texts[int(order[i])] == prompt:
                row = int(order[i])
                break
            i += 1
        found.append(row)
    return found


class StoredTexts(Sequence[str]):
    """The prompts of a store, read on access.

    Args:
        cache: The local copy of the store.
    """

    def __init__(self, cache: TensorDict) -> None:
        self._text: Tensor = cache["text"]
        self._starts: Tensor = cache["starts.text"]

    def __len__(self) -> int:
        return len(self._starts) - 2  # without the null prompt, the last row

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
