"""Feature stores: the rows that were measured, in files of a batch each.

A store is a folder of one method: ``settings.json`` and ``rows_FIRST_END.safetensors``. Files are
written whole, in the order of their rows, so that an interrupted evaluation goes on after the
last; and they are read one at a time, so that all of them need never be in memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdmd.documents import naming, read_json
from pdmd.files import save_tensors, write_file

__all__ = ["FeatureStore"]

NAME = re.compile(r"rows_(\d{9})_(\d{9})\.safetensors")


class FeatureStore:
    """The measured rows of one method.

    Args:
        folder: The store's folder.
        seeds: Samples of each prompt, whose rows follow one another.
    """

    def __init__(self, folder: Path, seeds: int) -> None:
        self.folder, self.seeds = folder, seeds

    def open(self, settings: Mapping[str, Any]) -> None:
        """Creates the folder, or checks that its rows were measured with the same settings.

        Args:
            settings: What determines the rows, as JSON.

        Raises:
            ValueError: If it has rows of other settings.
            OSError: If it cannot be written.
        """
        path, own = self.folder / "settings.json", json.loads(json.dumps(settings))
        if path.exists():
            with naming(path, "remove the folder to measure again"):
                known = dict(read_json(path))
            for key in dict.fromkeys([*known, *own]):
                if known.get(key) != own.get(key):
                    raise ValueError(
                        f"{self.folder} has features of {key} = {_short(known.get(key))}, not "
                        f"{_short(own.get(key))}; pass --overwrite to replace them, or another "
                        "--folder"
                    )
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(own, indent=2) + "\n")

    def clear(self) -> None:
        """Removes the settings and all rows."""
        for _, _, path in self._files():
            path.unlink()
        (self.folder / "settings.json").unlink(missing_ok=True)

    def count(self) -> int:
        """Returns the number of rows from the first without a gap."""
        count = 0
        for first, end, _ in self._files():
            if first != count:
                break
            count = end
        return count

    def add(self, first: int, rows: Mapping[str, Tensor], number: int) -> None:
        """Writes a file of rows.

        Args:
            first: The number of the first row.
            rows: The rows by measurement, on the CPU.
            number: How many they are; of some measurements there may be fewer.

        Raises:
            OSError: If writing fails.
        """
        path = self.folder / f"rows_{first:09d}_{first + number:09d}.safetensors"
        save_tensors({name: x.contiguous().clone() for name, x in rows.items()}, path)

    def blocks(self, name: str) -> Iterator[Tensor]:
        """Yields the rows of a measurement, file by file.

        Args:
            name: The measurement.

        Raises:
            ValueError: If a file is damaged.
        """
        from safetensors import SafetensorError, safe_open

        expected = 0
        for first, end, path in self._files():
            if first != expected:
                return
            expected = end
            try:
                with safe_open(path, "pt") as file:
                    rows = file.get_tensor(name) if name in file.keys() else None
            except SafetensorError as error:
                raise ValueError(
                    f"{path} is damaged ({error}); remove it and evaluate again"
                ) from error
            if rows is not None:
                yield rows

    def rows(self, name: str) -> Tensor:
        """Returns all rows of a measurement at once, for those of a few numbers a row."""
        return torch.cat(list(self.blocks(name)))

    def _files(self) -> list[tuple[int, int, Path]]:
        found = [(NAME.fullmatch(path.name), path) for path in self.folder.glob("rows_*")]
        return sorted((int(match[1]), int(match[2]), path) for match, path in found if match)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
