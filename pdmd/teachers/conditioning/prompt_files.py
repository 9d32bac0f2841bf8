"""Reading prompts and first images from text files, JSON lines, tables and data sets."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

from pdmd.extras import require
from pdmd.files import check_url, is_url, locate, locating_only_protocols, telling
from pdmd.teachers.conditioning.image_prompts import ImagePrompt

__all__ = ["read_image_prompts", "read_prompts"]

COLUMNS = ("prompt", "text")
IMAGE = "image"
NO_TEXT = re.compile("[\0\ud800-\udfff]")
"""NUL, as in UTF-16 read as UTF-8, and halves of a character, as JSON can escape them."""
PACKAGED = ("validation_prompts",)
"""Lists of prompts that ship, by name."""
TABLES = {".json": "json", ".parquet": "parquet"}
"""Tables that the datasets package reads, by suffix."""
SEPARATORS = {".csv": ",", ".tsv": "\t"}
OBJECTS = (".jsonl", ".ndjson", ".jsonlines", ".jl")
NOT_READ = (".yaml", ".yml", ".xml", ".xls", ".xlsx", ".html", ".toml")
"""Suffixes of files whose lines are not prompts."""


def read_prompts(
    source: str, *, column: str = "", split: str = "train", limit: int = 0
) -> list[str]:
    """Reads prompts, in order, without empty ones.

    Args:
        source: Path or URL of a text file (one prompt per line), of JSON lines (``.jsonl``, one
            object per line), of a table (``.csv`` and ``.tsv``, whose first line names the
            columns; ``.json``, ``.parquet``); the name or folder of a data set, for the
            ``datasets`` package; or ``validation_prompts``, a list
            that ships with the package, unless a file has this name.
        column: Key of the object, or column of the table; if empty, ``prompt`` or ``text``,
            whichever exists.
        split: Split of the data set.
        limit: Maximum number of prompts; 0 for all.

    Returns:
        The prompts.

    Raises:
        ValueError: If the source or the column does not exist, there are no prompts, a prompt is
            not a text or has characters that are none, or JSON lines have first images and no
            column is named.
    """
    if source in PACKAGED and not Path(source).exists():
        lists = resources.files("pdmd.teachers.conditioning") / "prompt_lists"
        source = str(lists / f"{source}.txt")
    suffix = _suffix(source)
    if suffix == ".txt":
        found: Iterable[Any] = (line.strip() for line in _lines(source))
    elif suffix in OBJECTS:
        found = _column(_without_images(_objects(source), column, source), column, source)
    elif suffix in SEPARATORS:
        found = _column(_separated(source, SEPARATORS[suffix], split), column, source)
    else:
        with locating_only_protocols():
            rows = _rows(source, TABLES.get(suffix), split, bool(limit))
            return _first(_column(rows, column, source), limit, source)
    return _first(found, limit, source)


def read_image_prompts(
    source: str, *, column: str = "", image_column: str = "", split: str = "train", limit: int = 0
) -> list[ImagePrompt]:
    """Reads prompts with their first images, in order. Images are not opened.

    Args:
        source: JSON lines, a table or a data set, as for :func:`read_prompts`.
        column: Key or column of the texts; if empty, ``prompt`` or ``text``.
        image_column: Key or column of the images; ``image`` if empty. An image is a path relative
            to the folder of the source, or a URL; in a data set it may also be an image feature.
        split: Split of the data set.
        limit: Maximum number of prompts; 0 for all.

    Returns:
        The prompts.

    Raises:
        ValueError: If the source or a column does not exist, there are no prompts, or a row has
            no text or no image.
    """
    suffix = _suffix(source)
    if suffix == ".txt":
        raise ValueError(
            f"{source} has no images, and the prompts of this teacher need first images; "
            'give JSON lines (.jsonl) such as {"prompt": "...", "image": "file.png"}'
        )
    name = image_column or IMAGE
    with locating_only_protocols():
        rows: Any
        if suffix in OBJECTS:
            rows = _objects(source)
        elif suffix in SEPARATORS:
            rows = _separated(source, SEPARATORS[suffix], split)
        else:
            rows = _rows(source, TABLES.get(suffix), split, bool(limit), name)
        pairs = _with_images(rows, column, name, source)
        return _nonempty(itertools.islice(pairs, limit or None), source)


def _first(found: Iterable[Any], limit: int, source: str) -> list[str]:
    prompts = (prompt for prompt in _texts(found, source) if prompt)
    return _nonempty(itertools.islice(prompts, limit or None), source)


def _nonempty(found: Iterable[Any], source: str) -> list[Any]:
    prompts = list(found)
    if not prompts:
        raise ValueError(f"{source} has no prompts; write one per line, or name their --column")
    return prompts


def _suffix(source: str) -> str:
    check_url(str(source))
    suffix = PurePosixPath(str(source)).suffix.lower()
    if suffix in NOT_READ and _is_file(source):
        raise ValueError(
            f"prompts are not read from {suffix} files, got {source}; write a text file with one "
            'prompt per line (.txt), or JSON lines such as {"prompt": "..."} (.jsonl)'
        )
    if suffix in (".txt", *OBJECTS, *SEPARATORS, *TABLES):
        return suffix
    return ".txt" if _is_file(source) else ""  # a data set, whose name may have a dot


def _without_images(
    rows: Iterable[Mapping[str, Any]], column: str, source: str
) -> Iterator[Mapping[str, Any]]:
    for number, row in enumerate(rows, 1):
        if IMAGE in row and not column:
            raise ValueError(
                f"row {number} of {source} has a first image, which this teacher does not accept; "
                "remove the images, or name the key of the texts with --column to ignore them"
            )
        yield row


def _with_images(
    rows: Iterable[Mapping[str, Any]], column: str, image_column: str, source: str
) -> Iterator[ImagePrompt]:
    rows, again = itertools.tee(rows)
    texts = _texts(_column(again, column, source), source)
    for number, (row, text) in enumerate(zip(rows, texts, strict=True), 1):
        image = row.get(image_column)
        if isinstance(image, Mapping):  # an undecoded image feature
            image = image.get("bytes") or image.get("path")
        if not image or not isinstance(image, str | bytes):
            raise ValueError(
                f"row {number} of {source} has no image in {image_column!r}, and the prompts of "
                "this teacher need first images; give a path or URL there, or name another key "
                "with --image-column"
            )
        yield ImagePrompt(text, _resolve(source, image) if isinstance(image, str) else image)


def _resolve(source: str, image: str) -> str:
    """Resolves the path of an image relative to the folder of its source."""
    if is_url(image) or image.startswith("/"):
        return image
    if not _suffix(source):  # the source is the folder of a data set
        return f"{str(source).rstrip('/')}/{image}"
    folder, slash, _ = str(source).rpartition("/")
    return f"{folder}{slash}{image}"


def _is_file(source: str) -> bool:
    fs, path = locate(str(source))
    return fs.isfile(path)


def _lines(source: str) -> Iterator[str]:
    fs, path = locate(str(source))
    with telling(str(source), "prompts could not be read"):
        if not fs.isfile(path):
            raise ValueError(f"the prompt file {source} does not exist")
        with fs.open(path, "r", encoding="utf-8-sig") as file:
            try:
                for line in file:
                    yield line.lstrip("\ufeff")  # files may be joined from several
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{source} is not UTF-8 text ({error}); save it in this encoding"
                ) from None


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
                f'line {number} of {source} is not a JSON object; write {{"prompt": "..."}}'
            )
        yield row


def _separated(source: str, separator: str, split: str) -> Iterator[Mapping[str, Any]]:
    """Yields the rows of a table whose first line names its columns; every cell is a text."""
    if split != "train":
        raise ValueError(f"{source} is one file and has no split {split!r}; leave --split out")
    rows = csv.DictReader(_lines(source), delimiter=separator, strict=True)
    try:
        for number, row in enumerate(rows, 1):
            if None in row or None in row.values():
                more = "more" if None in row else "fewer"
                raise ValueError(
                    f"row {number} of {source} has {more} cells than columns; quote a text with "
                    f"{separator!r} in it"
                )
            yield row
    except csv.Error as error:
        raise ValueError(
            f"line {rows.reader.line_num} of {source} is not that of a table ({error}); quote "
            'texts, and double the quotation marks in them ("")'
        ) from error


def _rows(source: str, kind: str | None, split: str, streaming: bool, image: str = "") -> Any:
    require("datasets", "datasets", alternative=f"give a .txt or .jsonl file, not {source}")
    from datasets import Image, load_dataset

    try:
        if kind is not None:
            rows: Any = load_dataset(
                kind, data_files=str(source), split=split, streaming=streaming
            )
        else:
            rows = load_dataset(str(source), split=split, streaming=streaming)
        is_feature = isinstance((rows.features or {}).get(image), Image)
        return rows.cast_column(image, Image(decode=False)) if is_feature else rows
    except Exception as error:  # datasets and its readers raise many classes
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
            raise ValueError(f"prompt {number} of {source} must be a text, got {value!r:.80}")
        if (wrong := NO_TEXT.search(value)) is not None:
            raise ValueError(
                f"prompt {number} of {source} has the character U+{ord(wrong[0]):04X}, which is "
                f"no text: {value!r:.80}; remove it, or save the file in UTF-8 if it has another "
                "encoding, such as UTF-16"
            )
        yield value.strip()
