"""Sources of prompts, with first images or without: text, JSON lines, tables and data sets."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from pdmd.files import check_url, is_url, locate, telling
from pdmd.teachers.conditioning.image_prompts import ImagePrompt

__all__ = ["read_image_prompts", "read_prompts"]

COLUMNS = ("prompt", "text")
IMAGE = "image"
TABLES = {".json": "json", ".csv": "csv", ".parquet": "parquet"}


def read_prompts(
    source: str, *, column: str = "", split: str = "train", limit: int = 0
) -> list[str]:
    """Reads prompts, in order; empty ones are left out.

    Args:
        source: A path or URL of a text file, a prompt per line; of JSON lines
            (``.jsonl``), an object per line; of a table (``.json``, ``.csv``, ``.parquet``); or
            the name or folder of a data set, for the ``datasets`` package.
        column: The key of an object, or the column of a table; by default ``prompt`` or ``text``,
            whichever is there.
        split: Which part of a data set.
        limit: How many to read at most; 0 reads all.

    Raises:
        ValueError: If the source or column is missing, there are no prompts, one is no text, or
            JSON lines have first images and no column is named.
    """
    suffix = _suffix(source)
    if suffix == ".txt":
        found: Iterable[Any] = (line.strip() for line in _lines(source))
    elif suffix == ".jsonl":
        found = _column(_without_images(_objects(source), column, source), column, source)
    else:
        found = _column(_rows(source, TABLES.get(suffix), split, bool(limit)), column, source)
    prompts = (prompt for prompt in _texts(found, source) if prompt)
    return _some(itertools.islice(prompts, limit or None), source)


def read_image_prompts(
    source: str, *, column: str = "", image_column: str = "", split: str = "train", limit: int = 0
) -> list[ImagePrompt]:
    """Reads prompts with their first images, in order.

    Args:
        source: JSON lines, a table or a data set, as :func:`read_prompts` takes them.
        column: The texts' key or column; by default ``prompt`` or ``text``.
        image_column: The images', by default ``image``. An image is a path, relative to where the
            source lies, or a URL; in a data set it may be a feature that holds images.
        split: Which part of a data set.
        limit: How many to read at most; 0 reads all.

    Raises:
        ValueError: If the source or a column is missing, there are no prompts, or a row has no
            text or no image. Images are not opened.
    """
    suffix = _suffix(source)
    if suffix == ".txt":
        raise ValueError(
            f"{source} is a file of texts alone, and this teacher's prompts have first images; "
            'give JSON lines (.jsonl) such as {"prompt": "...", "image": "file.png"}'
        )
    if suffix == ".jsonl":
        rows = _objects(source)
    else:
        rows = _rows(source, TABLES.get(suffix), split, bool(limit), image_column or IMAGE)
    pairs = _with_images(rows, column, image_column or IMAGE, source)
    return _some(itertools.islice(pairs, limit or None), source)


def _some(found: Iterable[Any], source: str) -> list[Any]:
    read = list(found)
    if not read:
        raise ValueError(f"{source} holds no prompts; write one per line, or name their --column")
    return read


def _suffix(source: str) -> str:
    check_url(str(source))
    suffix = PurePosixPath(str(source)).suffix.lower()
    if suffix in (".txt", ".jsonl") or suffix in TABLES:
        return suffix
    return ".txt" if _is_file(source) else ""  # a data set, whatever follows a dot in its name


def _without_images(
    rows: Iterable[Mapping[str, Any]], column: str, source: str
) -> Iterator[Mapping[str, Any]]:
    for number, row in enumerate(rows, 1):
        if IMAGE in row and not column:
            raise ValueError(
                f"row {number} of {source} has a first image, which this teacher does not take; "
                "leave images out, or name the texts' key with --column to read texts alone"
            )
        yield row


def _with_images(
    rows: Iterable[Mapping[str, Any]], column: str, image_column: str, source: str
) -> Iterator[ImagePrompt]:
    rows, again = itertools.tee(rows)
    texts = _texts(_column(again, column, source), source)
    for number, (row, text) in enumerate(zip(rows, texts, strict=True), 1):
        image = row.get(image_column)
        if isinstance(image, Mapping):  # as data sets hold them
            image = image.get("bytes") or image.get("path")
        if not image or not isinstance(image, str | bytes):
            raise ValueError(
                f"row {number} of {source} has no image in {image_column!r}, and this teacher's "
                "prompts have first images; give a path or URL there, or name another key with "
                "--image-column"
            )
        yield ImagePrompt(text, _beside(source, image) if isinstance(image, str) else image)


def _beside(source: str, image: str) -> str:
    """Returns where an image is that a source names, relative to the source's folder."""
    if is_url(image) or image.startswith("/"):
        return image
    if not _suffix(source):  # a data set's own folder
        return f"{str(source).rstrip('/')}/{image}"
    folder, parted, _ = str(source).rpartition("/")
    return f"{folder}{parted}{image}"


def _is_file(source: str) -> bool:
    fs, path = locate(str(source))
    return fs.isfile(path)


def _lines(source: str) -> Iterator[str]:
    fs, path = locate(str(source))
    with telling(str(source), "prompts could not be read"):
        if not fs.isfile(path):
            raise ValueError(f"the file of prompts {source} does not exist")
        with fs.open(path, "r", encoding="utf-8-sig") as file:
            try:
                yield from file
            except UnicodeDecodeError as error:
                raise ValueError(f"{source} is not text in UTF-8 ({error})") from None


def _objects(source: str) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(_lines(source), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise ValueError(
                f'line {number} of {source} is no JSON object; write {{"prompt": "..."}}'
            )
        yield row


def _rows(source: str, kind: str | None, split: str, few: bool, image: str = "") -> Any:
    try:
        from datasets import Image, load_dataset
    except ImportError as error:
        raise ValueError(
            f"{source} needs the package datasets, which is not installed ({error}); run `pip "
            "install 'pdmd[datasets]'`, or give a .txt or .jsonl file"
        ) from error

    try:
        if kind is not None:
            rows: Any = load_dataset(kind, data_files=str(source), split=split, streaming=few)
        else:
            rows = load_dataset(str(source), split=split, streaming=few)
        held = isinstance((rows.features or {}).get(image), Image)
        return rows.cast_column(image, Image(decode=False)) if held else rows
    except Exception as error:  # of many classes, some of them others' own
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(
            f"{source} could not be read as a data set ({first}); give a .txt or .jsonl file, or "
            "the name of a data set and its --split"
        ) from error


def _column(rows: Iterable[Mapping[str, Any]], column: str, source: str) -> Iterator[Any]:
    for number, row in enumerate(rows, 1):
        name = column or next((key for key in COLUMNS if key in row), "")
        if name not in row:
            what = f"no column {column!r}" if column else "neither 'prompt' nor 'text'"
            raise ValueError(
                f"row {number} of {source} has {what} but {', '.join(map(repr, row))}; name one "
                "of them with --column"
            )
        yield row[name]


def _texts(found: Iterable[Any], source: str) -> Iterator[str]:
    for number, value in enumerate(found, 1):
        if not isinstance(value, str):
            raise ValueError(f"prompt {number} of {source} is no text but {value!r:.80}")
        yield value.strip()
