"""Texts of others within model cards: in Markdown, and in lines of Python.

Folders, model cards and metrics come from elsewhere. What they state stays text in a card, on one
line, and is no markup, HTML or code.
"""

from __future__ import annotations

import json
import re

__all__ = ["escaped", "one_line", "quoted"]


def one_line(text: str) -> str:
    """Returns a text with single spaces, and without characters that are not printed."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def escaped(text: str) -> str:
    """Returns a text on one line, in Markdown that shows it: no link, HTML or end of a cell."""
    special = r"[\\`*\[\]<>#|~&]|(?<![^\W_])_|_(?![^\W_])"  # underscores within words are none
    return re.sub(special, r"\\\g<0>", one_line(text))


def quoted(text: str) -> str:
    """Returns a text as a string of Python."""
    return json.dumps(text, ensure_ascii=False) if text.isprintable() else repr(text)
