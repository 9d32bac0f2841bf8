"""Documents: JSON and TOML, read up to a size and a depth.

A file of a few bytes can nest deep enough to exhaust the stack, and one of gigabytes the memory.
Every document that may come from elsewhere is read here, and what is wrong with it is one line.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

__all__ = ["DEPTH", "SIZE", "naming", "parse_json", "read_json", "read_text", "read_toml"]

SIZE = 64 << 20
"""Bytes of a document, at most."""
DEPTH = 64
"""Lists and objects within one another, at most."""


def read_text(path: str | Path, *, size: int = SIZE) -> str:
    """Reads a text file in UTF-8, with a byte order mark or without.

    Args:
        path: The file.
        size: Its bytes, at most.

    Raises:
        ValueError: If it is larger or not UTF-8.
        OSError: If it cannot be read.
    """
    with Path(path).open("rb") as file:
        data = file.read(size + 1)
    _check_size(str(path), len(data), size)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not text in UTF-8 ({error.reason} at {error.start})"
        ) from None


def parse_json(data: bytes | str, place: str, *, size: int = SIZE) -> Any:
    """Parses JSON.

    Args:
        data: The document.
        place: Where it is from, for errors.
        size: Its bytes, at most.

    Raises:
        ValueError: If it is larger, nested deeper than :data:`DEPTH`, or not JSON.
    """
    _check_size(place, len(data), size)
    try:
        value = json.loads(data)
    except RecursionError:
        value = None
        deep = True
    except ValueError as error:
        raise ValueError(f"{place} is not JSON ({str(error)[:120]})") from None
    else:
        deep = _deeper(value, DEPTH)
    if deep:
        raise ValueError(f"{place} is nested deeper than {DEPTH} levels")
    return value


def read_json(path: str | Path, *, size: int = SIZE) -> Any:
    """Reads a JSON file; arguments and errors are those of :func:`parse_json`."""
    return parse_json(read_text(path, size=size), str(path), size=size)


def read_toml(path: str | Path, *, size: int = 1 << 20) -> tuple[str, dict[str, Any]]:
    """Reads a TOML file, and returns its text and its content.

    Args:
        path: The file.
        size: Its bytes, at most.

    Raises:
        ValueError: If it cannot be read, is larger, nested deeper than :data:`DEPTH`, or not TOML.
    """
    try:
        text = read_text(path, size=size)
        content = tomllib.loads(text)
        if _deeper(content, DEPTH):
            raise RecursionError
    except RecursionError:
        why = f"it is nested deeper than {DEPTH} levels"
        raise ValueError(f"{path} is not readable TOML: {why}") from None
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is not readable TOML: {error}") from error
    return text, content


@contextmanager
def naming(place: str | Path, remedy: str) -> Generator[None, None, None]:
    """Turns what reading unexpected values raises into one line that names the document.

    Args:
        place: The document.
        remedy: What to do, after a semicolon.

    Raises:
        ValueError: In the place of any error but an ``OSError``.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # values of any kind raise errors of any class
        why = " ".join(str(error).split())[:160]
        raise ValueError(
            f"{place} is damaged ({type(error).__name__}: {why}); {remedy}"
        ) from error


def _check_size(place: str, found: int, size: int) -> None:
    if found > size:
        raise ValueError(f"{place} is larger than {size / (1 << 20):g} MiB, and not read")


def _deeper(value: Any, depth: int) -> bool:
    """Returns whether lists and objects are nested deeper than a number of levels."""
    layer: list[Any] = [value]
    for _ in range(depth + 1):
        inner: list[Any] = []
        for item in layer:
            if isinstance(item, dict):
                inner += cast(dict[str, Any], item).values()
            elif isinstance(item, list):
                inner += cast(list[Any], item)
        layer = [item for item in inner if isinstance(item, dict | list)]
        if not layer:
            return False
    return True
