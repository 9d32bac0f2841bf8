"""Bars of progress in a terminal, and plain lines where there is none, such as in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from pdmd.training.monitoring.outputs import say

__all__ = ["BETWEEN_LINES", "Bar", "in_terminal", "progress_bar"]

BETWEEN_LINES = 10.0
"""Seconds between two lines, at least; the last is always written."""


def in_terminal() -> bool:
    """Returns whether the standard error stream is a terminal."""
    try:
        return sys.stderr.isatty()
    except (ValueError, AttributeError):  # closed
        return False


class Bar(Protocol):
    """What counts progress."""

    def update(self, n: int, /) -> Any:
        """Counts ``n`` more."""
        ...


class _Lines:
    def __init__(self, title: str, total: int, unit: str, done: int, shown: bool) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done, self.shown, self.said = done, shown, -BETWEEN_LINES

    def update(self, n: int, /) -> None:
        self.done += n
        now = time.monotonic()
        if self.shown and (now - self.said >= BETWEEN_LINES or self.done >= self.total):
            self.said = now
            say(f"{self.title}  {self.unit} {self.done}/{self.total}")


@contextmanager
def progress_bar(
    title: str, total: int, *, unit: str, done: int = 0, shown: bool = True
) -> Iterator[Bar]:
    """Shows progress within a block.

    Args:
        title: What is done.
        total: How much there is.
        unit: What is counted, in the singular.
        done: How much of it is done before.
        shown: Whether to show anything.
    """
    if not in_terminal():
        yield _Lines(title, total, unit, done, shown)
        return
    from tqdm import tqdm

    settings = {"unit": unit, "disable": not shown, "dynamic_ncols": True}
    with tqdm(desc=title, total=total, initial=done, **settings) as bar:
        yield bar
