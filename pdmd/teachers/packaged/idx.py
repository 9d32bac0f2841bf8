r"""IDX files: arrays of bytes as MNIST and Fashion-MNIST are distributed, plain or gzipped.

A file is two zero bytes, a byte for the type of values (8 for unsigned bytes, the only one that is
read here), a byte for the number of axes, the length of each axis as a big-endian 32-bit integer,
and the values in row-major order.

References:
    LeCun, Cortes and Burges, The MNIST Database of Handwritten Digits, 1998.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from pdmd.files import write_file

__all__ = ["read_idx", "write_idx"]

BYTES = 8
MOST = 1 << 31
CHUNK = 1 << 20


def read_idx(path: str | Path) -> Tensor:
    """Reads an array of unsigned bytes.

    Args:
        path: The file, plain or compressed by gzip, whatever its name.

    Returns:
        The array, uint8.

    Raises:
        ValueError: If the file cannot be read, is not an IDX file of unsigned bytes, or has fewer
            or more values than its header states.
    """
    try:
        with Path(path).open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if not zipped:
                return _read(file)
            with gzip.GzipFile(fileobj=file) as unzipped:
                return _read(unzipped)  # type: ignore[arg-type]
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(
            f"{path} is not a complete IDX file ({error}); get it again from its source"
        ) from error


def _read(file: BinaryIO) -> Tensor:
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0":
        raise ValueError(f"it starts with {head!r}, not with two zero bytes, a type and a rank")
    if head[2] != BYTES:
        raise ValueError(f"its values have the type {head[2]:#04x}, expected unsigned bytes, 0x08")
    rank = head[3]
    sizes = file.read(4 * rank)
    if len(sizes) < 4 * rank:
        raise ValueError(f"it ends within the lengths of its {rank} axes")
    shape = struct.unpack(f">{rank}I", sizes)
    count = math.prod(shape)
    if count > MOST:
        raise ValueError(f"its header states a shape of {shape}, more than {MOST:,} values")
    values = bytearray()
    while len(values) <= count and (part := file.read(min(CHUNK, count + 1 - len(values)))):
        values += part
    if len(values) != count:
        found = "more" if len(values) > count else f"{len(values):,}"
        raise ValueError(f"its header states {count:,} values of shape {shape}, it has {found}")
    array = torch.frombuffer(values, dtype=torch.uint8) if count else torch.empty(0).byte()
    return array.reshape(shape)


def write_idx(array: Tensor, path: str | Path) -> None:
    """Writes an array of unsigned bytes, compressed by gzip if the name ends in ``.gz``.

    Args:
        array: The array, uint8, with at most 255 axes.
        path: The file.

    Raises:
        ValueError: If the array is not of unsigned bytes or has too many axes.
    """
    if array.dtype != torch.uint8 or array.ndim > 255:
        raise ValueError(
            f"expected an array of uint8 with at most 255 axes, got {array.dtype} with "
            f"{array.ndim}; convert it with .to(torch.uint8)"
        )
    head = bytes([0, 0, BYTES, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = head + array.contiguous().numpy().tobytes()
    write_file(path, gzip.compress(content, mtime=0) if str(path).endswith(".gz") else content)
