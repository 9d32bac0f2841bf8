"""Sizes: the networks that a student folder describes, compared with its stored weights.

A few bytes of ``student.json`` name widths and depths, and networks of them are built before
weights are read. So the shapes in the headers of the folder's files come first: what is built is
outlined on the meta device, without memory, and has to be of the files' size.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from pdmd.documents import parse_json

__all__ = ["FolderSizes", "read_header", "checksum"]

HEADER = 100 << 20
"""Bytes of a header, at most, as the safetensors library has it."""
SMALL = 1 << 26
"""Numbers of a network that may be built whatever the files hold: 256 MiB in float32."""
LAYERS = 256
NUMBERS = 1 << 20


def read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a safetensors file's tensors; nothing else of it is read.

    Raises:
        ValueError: If the header is damaged.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(HEADER, path.stat().st_size - 8):
                raise ValueError("its header is longer than the file")
            header = parse_json(file.read(length), str(path), size=HEADER)
        header.pop("__metadata__", None)
        shapes = {str(key): tuple(map(int, entry["shape"])) for key, entry in header.items()}
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"{path} is damaged ({str(error)[:120]}); distill again or restore the file"
        ) from error
    return shapes


@dataclass(frozen=True)
class FolderSizes:
    """The shapes of all weights of a student's folder.

    Attributes:
        folder: The folder.
        shapes: Those of each file's tensors, by file; files that are missing are left out.
    """

    folder: Path
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]

    @classmethod
    def read(cls, folder: Path, content: Mapping[str, Any]) -> FolderSizes:
        """Reads the headers of the files that a ``student.json`` names.

        Raises:
            ValueError: If one is damaged.
        """
        names = {Path(entry["file"]).name for entry in content["experts"]}
        there = [name for name in sorted(names) if (folder / name).is_file()]
        return cls(folder, {name: read_header(folder / name) for name in there})

    @property
    def tensors(self) -> int:
        """The number of tensors of all files."""
        return sum(map(len, self.shapes.values()))

    @property
    def numbers(self) -> int:
        """The number of values of all tensors."""
        return sum(math.prod(shape) for file in self.shapes.values() for shape in file.values())

    def check_arguments(self, name: str, arguments: Mapping[str, Any]) -> None:
        """Checks that widths and depths are not beyond anything that the files could hold.

        Args:
            name: What takes the arguments, for the error.
            arguments: The arguments, as ``student.json`` has them.

        Raises:
            ValueError: If one is.
        """
        for key, value in _integers(arguments):
            if re.search("seed", key):
                continue
            deep = re.search(r"depth|layers|blocks", key)
            most = max(LAYERS, self.tensors) if deep else max(NUMBERS, self.numbers)
            if abs(value) > most:
                raise ValueError(
                    f"{self.folder / 'student.json'} is damaged: {key} = {value!s:.40} of "
                    f"{name!r} does not fit the weights beside it, {self.tensors} tensors of "
                    f"{self.numbers:,} numbers; distill again or restore it"
                )

    def check_outline(self, name: str, outline: nn.Module) -> None:
        """Checks that a network is not much larger than the weights, before it gets memory.

        Args:
            name: What it is called, for the error.
            outline: The network on the meta device.

        Raises:
            ValueError: If it is.
        """
        size = sum(t.numel() for t in (*outline.parameters(), *outline.buffers()))
        if size > max(SMALL, 4 * self.numbers):
            raise ValueError(
                f"{self.folder / 'student.json'} is damaged: {name!r} would have {size:,} "
                f"numbers, and the files beside it hold {self.numbers:,}; distill again or "
                "restore it"
            )

    def check_network(self, name: str, make: Any, content: Mapping[str, Any]) -> None:
        """Checks that a network has the tensors of the files, before it gets memory.

        Args:
            name: What it is called, for the error.
            make: Builds it.
            content: The folder's ``student.json``.

        Raises:
            ValueError: If it has others.
        """
        try:
            with torch.device("meta"):
                outline = make()
        except (NotImplementedError, RuntimeError):
            return  # it computes while it is built
        self.check_outline(name, outline)
        own = {key: tuple(value.shape) for key, value in outline.state_dict().items()}
        for entry in content["experts"]:
            shapes = self.shapes.get(Path(entry["file"]).name)
            if shapes is None or "adapter" in entry or "boundaries" in entry:
                continue
            for key in sorted(own.keys() | shapes.keys()):
                if own.get(key) != shapes.get(key):
                    there, here = (_shape(part.get(key)) for part in (shapes, own))
                    raise ValueError(
                        f"{self.folder / entry['file']} is damaged or does not fit the network: "
                        f"{key:.80} is {there} in the file and {here} in the {name!r} that "
                        "student.json describes"
                    )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else f"{list(shape)}"


def _integers(value: Any, key: str = "") -> list[tuple[str, int]]:
    """Lists the whole numbers of JSON values with the names that they stand under."""
    if isinstance(value, dict):
        items = cast(dict[str, Any], value).items()
        return [pair for name, item in items for pair in _integers(item, str(name))]
    if isinstance(value, list):
        return [pair for item in cast(list[Any], value) for pair in _integers(item, key)]
    return [(key, value)] if isinstance(value, int) and not isinstance(value, bool) else []


def checksum(path: Path) -> str:
    """Returns a file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
