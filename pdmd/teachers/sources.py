"""Sources of prompts: files of text, JSON lines, tables and data sets."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from pdmd.files import locate, telling

__all__ = ["read_prompts"]

COLUMNS = ("prompt", "text")
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
        ValueError: If the source or column is missing, there are no prompts, or one is no text.
    """
    suffix = PurePosixPath(str(source)).suffix.lower()
    known = suffix == ".jsonl" or suffix in TABLES
    if suffix == ".txt" or (not known and _is_file(source)):
        found: Iterable[Any] = (line.strip() for line in _lines(source))
    elif suffix == ".jsonl":
        found = _column(_objects(source), column, source)
    else:
        found = _column(_rows(source, TABLES.get(suffix), split, bool(limit)), column, source)
    prompts = (prompt for prompt in _texts(found, source) if prompt)
    read = list(itertools.islice(prompts, limit or None))
    if not read:
        raise ValueError(f"{source} holds no prompts; write one per line, or name their --column")
    return read


def _is_file(source: str) -> bool:
    fs, path = locate(str(source))
    return fs.isfile(path)


def _lines(source: str) -> Iterator[str]:
    fs, path = locate(str(source))
    with telling(str(source), "prompts could not be read"):
        if not fs.isfile(path):
            raise ValueError(f"the file of prompts {source} does not exist")
        with fs.open(path, "r", encoding="utf-8") as file:
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


def _rows(source: str, kind: str | None, split: str, few: bool) -> Any:
    from datasets import load_dataset

    try:
        if kind is not None:
            return load_dataset(kind, data_files=str(source), split=split, streaming=few)
        return load_dataset(str(source), split=split, streaming=few)
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
