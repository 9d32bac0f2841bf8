"""The report of a perceptual comparison: its table, what the figures mean, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pdmd.evaluation.figures import data_uri, plain_text, prompt_rows
from pdmd.extras import require
from pdmd.files import local_path, write_file

__all__ = ["write_comparison"]


def write_comparison(
    path: str | Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    title: str,
    facts: Mapping[str, str],
    figures: Mapping[str, str],
    pictures: Mapping[str, Tensor],
    prompts: Sequence[str],
    notices: Sequence[str] = (),
) -> Path:
    """Writes a page.

    Args:
        path: The HTML file.
        rows: The table, a row a method, ``None`` where a method has no figure.
        title: What was compared.
        facts: The protocol, by name.
        figures: What each figure means, by name.
        pictures: Pictures in [0, 1], with shape :math:`(P S, C, H, W)`, by method.
        prompts: Their P prompts.
        notices: What the reader should know first, a line each.

    Returns:
        The page's path.
    """
    require("report", "jinja2", "matplotlib")
    from jinja2 import Environment, PackageLoader, select_autoescape

    environment = Environment(
        loader=PackageLoader("pdmd.evaluation", "perceptual"),
        autoescape=select_autoescape(["j2", "html"]),
    )
    shown = {name: data_uri(prompt_rows({name: x}, prompts), 160) for name, x in pictures.items()}
    page = environment.get_template("comparison.html.j2").render(
        title=plain_text(title),
        rows=rows,
        facts={key: plain_text(value) for key, value in facts.items()},
        figures=figures,
        notices=[plain_text(line) for line in notices],
        pictures=shown,
    )
    out = local_path(path, "a report")
    write_file(out, page.encode("utf-8", "replace"))
    return out
