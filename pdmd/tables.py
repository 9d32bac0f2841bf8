"""Tables that a person reads, as text in a terminal and as HTML in a notebook."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Table", "counted"]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of texts below a heading.

    Attributes:
        heading: The columns' names.
        rows: The texts, one row per item.
        caption: A line below the rows.
    """

    heading: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def __str__(self) -> str:
        lines = [self.heading, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        texts = [
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        return "\n".join([*texts, *([self.caption] if self.caption else [])])

    def _repr_html_(self) -> str:
        def cells(tag: str, line: Sequence[str]) -> str:
            return "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in line)

        rows = "".join(f"<tr>{cells('td', row)}</tr>" for row in self.rows)
        caption = f"<p>{html.escape(self.caption)}</p>" if self.caption else ""
        heading = f"<thead><tr>{cells('th', self.heading)}</tr></thead>"
        return f"<table>{heading}<tbody>{rows}</tbody></table>{caption}"


def counted(number: int, noun: str) -> str:
    """Returns a number with its noun, such as ``"1 phase"`` or ``"2 phases"``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
