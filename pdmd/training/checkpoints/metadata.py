"""Metadata: the index of a checkpoint's tensors, which torch keeps as a pickle.

A pickle names the callables that rebuild its objects, so reading one can run any code. This reader
knows the classes of ``torch.distributed.checkpoint.metadata``, ``torch.Size``, layouts and dtypes,
and nothing else; entries that are no tensors, whose files DCP would unpickle, are rejected too.
What it returns is then compared with the manifest: every tensor lies within a file of its own
folder.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import (
    _StorageInfo,  # pyright: ignore[reportPrivateUsage]
)
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,  # pyright: ignore[reportPrivateUsage]
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from pdmd.files import FileDigest

__all__ = ["parse_metadata"]

CLASSES: dict[str, Any] = {
    f"{known.__module__}.{known.__qualname__}": known
    for known in (
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        StorageMeta,
        TensorProperties,
        TensorStorageMetadata,
        torch.Size,
        _MEM_FORMAT_ENCODING,
        _StorageInfo,
    )
}
LAYOUTS = {"torch.strided": torch.strided}


def _layout(name: str) -> torch.layout:
    return LAYOUTS[name]


def _memory_format(kind: object, name: object) -> _MEM_FORMAT_ENCODING:
    """Stands for ``getattr``, by which Python 3.11.2 pickles members of an enumeration."""
    if kind is not _MEM_FORMAT_ENCODING or name not in _MEM_FORMAT_ENCODING.__members__:
        raise pickle.UnpicklingError(f"takes {name!r:.60} of {kind!r:.60}")
    return _MEM_FORMAT_ENCODING.__members__[str(name)]


class MetadataUnpickler(pickle.Unpickler):
    """Unpickles DCP's metadata and nothing else."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Returns a known class, a dtype, or what looks layouts and memory formats up.

        Raises:
            pickle.UnpicklingError: If the name is another.
        """
        name = f"{module_name}.{global_name}"
        if name in CLASSES:
            return CLASSES[name]
        if name == "torch.serialization._get_layout":
            return _layout
        if name == "builtins.getattr":
            return _memory_format
        if module_name == "torch" and isinstance(
            dtype := vars(torch).get(global_name), torch.dtype
        ):
            return dtype
        raise pickle.UnpicklingError(f"names {name[:120]}")

    def persistent_load(self, pid: Any, /) -> Any:
        raise pickle.UnpicklingError("names objects outside of it")


def parse_metadata(data: bytes, files: Mapping[str, FileDigest]) -> Metadata:
    """Reads DCP's metadata.

    Args:
        data: The pickle.
        files: The files of the checkpoint's manifest.

    Raises:
        ValueError: If it holds anything but the index of tensors that lie in these files; says
            what is wrong.
    """
    try:
        metadata = MetadataUnpickler(io.BytesIO(data)).load()
    except Exception as error:  # a damaged pickle raises errors of any class
        why = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise ValueError(
            f"is no index of tensors ({why[0][:160]}), and nothing else in a pickle is read"
        ) from None
    try:
        damage = _damage(metadata, files)
    except (AttributeError, TypeError) as error:
        damage = str(error)[:160]
    if damage:
        raise ValueError(f"is no index of this checkpoint's tensors ({damage})")
    return metadata


def _damage(metadata: Any, files: Mapping[str, FileDigest]) -> str | None:
    """Returns what sets an object apart from the index of tensors in these files."""
    if type(metadata) is not Metadata or metadata.planner_data:
        return f"a {type(metadata).__name__}"
    for key, entry in metadata.state_dict_metadata.items():
        if type(key) is not str or type(entry) is not TensorStorageMetadata:
            return f"{key!r:.80} is a {type(entry).__name__}"
        for chunk in entry.chunks:
            inside = zip(chunk.offsets, chunk.sizes, entry.size, strict=False)
            if (
                not len(chunk.offsets) == len(chunk.sizes) == len(entry.size)
                or not isinstance(entry.properties.dtype, torch.dtype)
                or any(begin < 0 or n < 0 or begin + n > whole for begin, n, whole in inside)
            ):
                return f"{key!r:.80} has a part outside of its shape"
    for index, place in metadata.storage_data.items():
        if type(index) is not MetadataIndex or type(place) is not _StorageInfo:
            return f"a place is a {type(place).__name__}"
        file = files.get(place.relative_path)
        if file is None:
            return f"{index.fqn!r:.80} is in {place.relative_path!r:.80}, no file of its manifest"
        if place.transform_descriptors or not (
            0 <= place.offset <= place.offset + place.length <= file.size
        ):
            return f"{index.fqn!r:.80} is beyond the end of {place.relative_path}"
    return None
