"""Safetensors files, compared with what their headers say, without reading their values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pdmd.documents import parse_json

__all__ = ["tensor_damage"]

BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
"""Bits of an element, by the name of its type."""
HEADER = 100 << 20


def tensor_damage(path: Path) -> str | None:
    """Describes how the tensors of a safetensors file differ from their shapes.

    Args:
        path: The file.

    Returns:
        What is wrong; ``None`` if every tensor lies within the file and has the bytes of its shape
        and type.

    Raises:
        OSError: If the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(HEADER, size - 8):
            return "is no safetensors file, or is truncated"
        data = file.read(length)
    try:
        header = parse_json(data, "the header", size=HEADER)
        ends = [_end(name, entry) for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return f"has a header that is no index of tensors ({str(error)[:120]})"
    found, wanted = size - 8 - length, max(ends, default=0)
    return None if found == wanted else f"has {found} bytes of tensors instead of {wanted}"


def _end(name: str, entry: Mapping[str, Any]) -> int:
    begin, end = entry["data_offsets"]
    shape, kind = entry["shape"], entry["dtype"]
    if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
        raise ValueError(f"the shape of {name[:60]!r} is {shape!r:.60}")
    if kind in BITS and 8 * (end - begin) != math.prod(shape) * BITS[kind]:
        raise ValueError(f"{name[:60]!r} has {end - begin} bytes for {kind} {shape!r:.60}")
    return end
