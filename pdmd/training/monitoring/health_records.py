"""Health records of a run: ``health.jsonl``, one measurement, or one skipped step, a line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pdmd.documents import parse_json, read_text
from pdmd.files import write_file
from pdmd.training.monitoring.detectors import Finding, HealthRecord

__all__ = ["HealthFile", "read_health"]

LARGEST = 1 << 30
"""Bytes of the file, at most."""


def read_health(path: Path) -> tuple[list[HealthRecord], list[dict[str, Any]]]:
    """Reads measurements, and warnings of skipped steps, up to a line cut off by a kill.

    Args:
        path: The file; one that does not exist has no lines.

    Raises:
        ValueError: If it is very large or not text.
    """
    records: list[HealthRecord] = []
    warnings: list[dict[str, Any]] = []
    text = read_text(path, size=LARGEST) if path.is_file() else ""
    for line in text.splitlines():
        try:
            row = parse_json(line, str(path))
            phase, update = int(row["phase"]), int(row["update"])
            if "warning" in row:
                known = {"phase": phase, "update": update, "warning": str(row["warning"])}
                warnings.append(known)
                continue
            values = {str(name): float(value) for name, value in row["values"].items()}
            records.append(
                HealthRecord(
                    phase=phase, update=update, updates=int(row["updates"]), values=values
                )
            )
        except (ValueError, TypeError, LookupError, AttributeError):
            break
    return records, warnings


class HealthFile:
    """Appends to ``health.jsonl``.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, record: HealthRecord, found: Sequence[Finding]) -> None:
        """Appends a measurement and what was found by it."""
        row = {
            "phase": record.phase,
            "update": record.update,
            "updates": record.updates,
            "values": dict(record.values),
        }
        if found:
            row["findings"] = [finding.as_dict() for finding in found]
        self._append(row)

    def add_warning(self, phase: int, update: int, warning: str) -> None:
        """Appends a skipped step."""
        self._append({"phase": phase, "update": update, "warning": warning})

    def resume(self, phase: int, update: int) -> list[HealthRecord]:
        """Drops the lines after a checkpoint, and returns the measurements that stay."""
        if not self.path.exists():
            return []
        kept: list[str] = []
        for line in read_text(self.path, size=LARGEST).splitlines():
            try:
                row = parse_json(line, str(self.path))
                if (int(row["phase"]), int(row["update"])) <= (phase, update):
                    kept.append(line)
            except (ValueError, TypeError, LookupError):
                break
        write_file(self.path, "".join(f"{line}\n" for line in kept))
        return read_health(self.path)[0]

    def _append(self, row: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
