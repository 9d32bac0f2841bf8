"""Inputs: digests of what a run reads, by which a resumed run notices that it has changed.

A file of at most 16 MiB is digested whole. Of a larger one its size is, and: for safetensors, the
header and 4 KiB from the middle of every tensor; for other local files, 256 blocks of 4 KiB; on
other file systems, the digest or version that the file system states. So a pipeline of 40 GB is
digested in seconds, and a change outside of these bytes is not noticed. Times of modification do
not count. Of a store of embeddings the index is read, which holds the digests of its shards.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import PurePath
from typing import IO, TYPE_CHECKING, Any, cast

from torch import Tensor, uint8

from pdmd.files import FileDigest, is_local, locate, telling

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

__all__ = ["InputDigests", "changed_inputs", "digest_input", "digest_prompts"]

InputDigests = dict[str, dict[str, str]]
"""For each input by its name, the digests of its files."""

_log = logging.getLogger(__name__)

WHOLE = 16 << 20
"""Bytes of a file that is digested whole, at most."""
BLOCK, BLOCKS = 4096, 256
FILES = 2000
"""Files of a folder whose content is digested, at most; of more, names and sizes are."""
VERSIONS = ("sha256", "oid", "ETag", "etag", "md5Hash", "content_md5", "crc32c", "VersionId")
"""Keys under which file systems state the version of a file."""
SKIPPED = (".md", ".lock", ".gitattributes", ".gitignore")
ROWS = 4096
"""Prompts that are digested of those read from storage on access."""


def digest_input(url: str) -> dict[str, str]:
    """Digests a file, or the files of a folder.

    Args:
        url: A path or URL.

    Returns:
        A digest for each file, by its path within the folder; none if nothing is there.

    Raises:
        ValueError: If :func:`~pdmd.files.check_url` rejects the URL.
        OSError: If a file cannot be read.
    """
    fs, root = locate(url)
    with telling(url, "it could not be digested"):
        fs.invalidate_cache()
        found = cast(dict[str, dict[str, Any]], fs.find(root, detail=True))
        sizes = {name: int(info.get("size") or 0) for name, info in found.items()}
        files = {name: name[len(root) :].lstrip("/") or _last(name) for name in sizes}
        files = {name: short for name, short in files.items() if _counts(short)}
        if len(files) > FILES:
            listed = sorted((short, sizes[name]) for name, short in files.items())
            return {f"names and sizes of {len(files)} files": _sha256(json.dumps(listed))}
        shards = "index.json" in files.values()  # a store: its index has the digests
        return {
            short: f"{sizes[name]} bytes"
            if shards and short.startswith("embeddings-")
            else _digest(fs, name, sizes[name], found[name])
            for name, short in sorted(files.items())
        }


def digest_prompts(prompts: Sequence[Any]) -> dict[str, str]:
    """Digests prompts; of those that are read on access, 4096 and their number."""
    rows = range(len(prompts))
    if not isinstance(prompts, list | tuple | range) and len(prompts) > ROWS:
        rows = [i * (len(prompts) - 1) // (ROWS - 1) for i in range(ROWS)]
    sha256 = hashlib.sha256(str(len(prompts)).encode())
    for i in rows:
        sha256.update(f"\n{_text(prompts[i])}".encode(errors="surrogatepass"))
    return {f"the list of {len(prompts)}": sha256.hexdigest()}


def changed_inputs(
    old: Mapping[str, Mapping[str, str]], new: Mapping[str, Mapping[str, str]]
) -> dict[str, str]:
    """Compares the inputs that both a checkpoint and a run have.

    Returns:
        What changed, by the name of the input.
    """
    return {
        key: what
        for key in sorted(old.keys() & new.keys())
        if (what := _change(old[key], new[key]))
    }


def _change(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    if set(old.values()) == set(new.values()) and len(old) == len(new) == 1:
        return ""  # a file of another name
    other = [name for name in old if name in new and old[name] != new[name]]
    gone, added = sorted(old.keys() - new.keys()), sorted(new.keys() - old.keys())
    if len(gone) == len(added) == 1 and not other:  # one file, or one list, for another
        return f"{added[0]} instead of {gone[0]}"
    parts = [
        f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''} {what}"
        for names, what in ((other, "differs"), (gone, "is gone"), (added, "is new"))
        if names
    ]
    return ", ".join(parts)


def _digest(fs: AbstractFileSystem, path: str, size: int, info: Mapping[str, Any]) -> str:
    if size <= WHOLE:
        return FileDigest.read(fs, path).sha256
    if not is_local(fs):
        versions = [f"{key} {info[key]}" for key in VERSIONS if info.get(key)]
        return _sha256(f"{size} {versions}")
    sha256 = hashlib.sha256(str(size).encode())
    with cast(IO[bytes], fs.open(path, "rb")) as file:
        for begin, length in _blocks(file, size, path.endswith(".safetensors")):
            file.seek(begin)
            sha256.update(file.read(length))
    return sha256.hexdigest()


def _blocks(file: IO[bytes], size: int, tensors: bool) -> Iterator[tuple[int, int]]:
    """Yields where the blocks that are digested begin, and their length."""
    header = int.from_bytes(file.read(8), "little") if tensors else 0
    if 0 < header < min(size, 100 << 20):
        try:
            index = json.loads(file.read(header))
            places = [v["data_offsets"] for k, v in index.items() if k != "__metadata__"]
            ends = [(int(begin), int(end)) for begin, end in places]
        except (ValueError, LookupError, TypeError, AttributeError):
            ends = []
        yield 0, 8 + header
        for begin, end in ends:
            length = min(BLOCK, end - begin)
            yield 8 + header + (begin + end - length) // 2, length
        if ends:
            return
    for i in range(BLOCKS):
        yield i * (size - BLOCK) // (BLOCKS - 1), BLOCK


def _counts(name: str) -> bool:
    """Returns whether a file may matter to a run: no hidden file, no card."""
    return not name.endswith(SKIPPED) and not any(p.startswith(".") for p in name.split("/"))


def _text(prompt: Any) -> str:
    """Returns a text that says what a prompt contains, the same in every process."""
    if prompt is None or isinstance(prompt, str | bytes | int | float | PurePath):
        return repr(prompt)
    name = type(prompt).__name__
    if dataclasses.is_dataclass(prompt):
        values = (getattr(prompt, field.name) for field in dataclasses.fields(prompt))
        return f"{name}({', '.join(map(_text, values))})"
    if isinstance(prompt, Mapping):
        items = cast(Mapping[Any, Any], prompt).items()
        return f"{name}({', '.join(f'{_text(k)}: {_text(v)}' for k, v in items)})"
    if isinstance(prompt, list | tuple | set | frozenset):
        values = map(_text, cast("Sequence[Any]", prompt))
        return f"{name}({', '.join(sorted(values) if isinstance(prompt, Set) else values)})"
    if isinstance(prompt, Tensor):
        values = prompt.detach().cpu().contiguous()
        data = values.reshape(-1).view(uint8).numpy().tobytes()
        return f"{name}({values.dtype}, {tuple(values.shape)}, {FileDigest.of(data).sha256})"
    if callable(getattr(prompt, "tobytes", None)):  # an array, or a picture of PIL
        form = [getattr(prompt, key, None) for key in ("dtype", "shape", "mode", "size")]
        return f"{name}({form}, {FileDigest.of(prompt.tobytes()).sha256})"
    text = repr(prompt)
    if re.search(r" at 0x[0-9a-f]+", text):  # its place in memory, which says nothing
        _say_undigested(name)
        return name
    return text


@functools.cache
def _say_undigested(name: str) -> None:
    _log.warning(
        "prompts of the class %s are digested by their class alone, so that a resumed run does "
        "not notice that one has changed; give it a __repr__ of its content, or make it a "
        "dataclass",
        name,
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _last(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]
