"""Figures of a run, drawn with matplotlib off screen."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pdmd.extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "calibration_figure",
    "data_uri",
    "image_grid",
    "is_picture",
    "loss_figure",
    "plain_text",
    "plan_figure",
    "png",
    "prompt_rows",
    "side_by_side",
    "tradeoff_figure",
    "vector_scatter",
]

COLOURS = ("#3b6ea8", "#d9822b", "#4d9a57", "#a8485f", "#7a5ea8", "#8a7340", "#3f9c9c", "#777777")


PIXELS = 416
"""Width of a panel in pixels; wider ones are averaged."""

SCALARS = 60
"""Scalars of a history that are drawn, at most."""

LONGEST = 36
"""Maximum characters of a prompt beside its pictures."""


def new_figure(width: float, height: float) -> Figure:
    require("report", "matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure, dpi: float | None = None, *, tight: bool = False) -> bytes:
    """Draws a figure as a PNG, its texts as they are: no character in them is markup.

    Args:
        figure: The figure.
        dpi: Its resolution; its own by default.
        tight: Whether to cut the margins.
    """
    from matplotlib import rc_context
    from matplotlib.text import Text

    cut = {"bbox_inches": "tight", "pad_inches": 0.05} if tight else {}
    buffer = io.BytesIO()
    with rc_context({"text.parse_math": False, "text.usetex": False}):  # for ticks made on drawing
        for text in figure.findobj(Text):
            assert isinstance(text, Text)
            text.set_text("\n".join(map(plain_text, text.get_text().split("\n"))))
            text.set_parse_math(False)
            text.set_usetex(False)
        figure.savefig(buffer, format="png", dpi=dpi or figure.dpi, **cut)
    return buffer.getvalue()


def plain_text(value: Any) -> str:
    """Returns a text in one line, without characters that cannot be drawn or encoded."""
    text = " ".join(str(value).split())
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return text.encode("utf-8", "replace").decode()


def data_uri(picture: Figure | bytes, dpi: float | None = None) -> str:
    """Returns a figure, or the content of a PNG file, as a data URI for a page.

    Args:
        picture: The figure or the content.
        dpi: A figure's resolution; by default the figure's.

    Raises:
        ValueError: If the content is not a PNG.
    """
    if not isinstance(picture, bytes):
        picture = png(picture, dpi)
    if not picture.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError("a picture is not a PNG; draw it again")
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def is_picture(uri: Any) -> bool:
    """Returns whether a value is a PNG as :func:`data_uri` returns it, not a link."""
    return isinstance(uri, str) and bool(
        re.fullmatch(r"data:image/png;base64,iVBORw0KGgo[A-Za-z0-9+/]*={0,2}", uri)
    )


def style_axes(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)


def image_grid(images: Tensor, *, columns: int, title: str = "") -> Figure:
    """Draws images in [0, 1], of shape :math:`(B, 1 or 3, H, W)`, in rows of ``columns``."""
    return side_by_side({title: images}, columns=columns)


def side_by_side(panels: Mapping[str, Tensor], *, columns: int) -> Figure:
    """Draws one grid of images per panel, with the middle frame of videos."""
    panels = {k: x[:, :, x.shape[2] // 2] if x.ndim == 5 else x for k, x in panels.items()}
    n, _, height, width = next(iter(panels.values())).shape
    rows = math.ceil(n / columns)
    side = 3.2 if columns * width <= PIXELS else 5.0
    ratio = (rows * (height + 1) + 1) / (columns * (width + 1) + 1)
    figure = new_figure(side * len(panels), side * ratio + 0.35)
    for i, (title, images) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), i + 1)
        n, channels, height, width = images.shape
        canvas = torch.ones(rows * (height + 1) + 1, columns * (width + 1) + 1, channels)
        for j in range(n):
            top, left = 1 + (j // columns) * (height + 1), 1 + (j % columns) * (width + 1)
            canvas[top : top + height, left : left + width] = images[j].permute(1, 2, 0)
        axes.imshow(
            canvas.squeeze(-1).clamp(0, 1).numpy(),
            cmap="gray",
            vmin=0,
            vmax=1,
            interpolation="nearest" if columns * width <= PIXELS else "auto",
        )
        axes.set_axis_off()
        axes.set_title(title, fontsize=10)
    return figure


def prompt_rows(panels: Mapping[str, Tensor], prompts: Sequence[str]) -> Figure:
    """Draws the pictures of each prompt in a row, one panel per method.

    Args:
        panels: Pictures in [0, 1], with shape :math:`(PN, C, H, W)`, grouped by prompt.
        prompts: The P prompts, drawn at the left.
    """
    rows, prompts = len(prompts), [plain_text(prompt) for prompt in prompts]
    longest = 0.085 * min(LONGEST, max(map(len, prompts)))
    pictures = next(iter(panels.values()))
    figure = side_by_side(panels, columns=len(pictures) // rows)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width + longest, height)
    axes, tall = figure.axes[0], pictures.shape[-2] + 1  # one pixel between rows
    for i, prompt in enumerate(prompts):
        shown = prompt if len(prompt) <= LONGEST else prompt[: LONGEST - 1] + "\u2026"
        where = {"xy": (0, (i + 0.5) * tall), "xytext": (-6, 0), "ha": "right"}
        axes.annotate(shown, **where, textcoords="offset points", va="center", fontsize=7)
    return figure


def vector_scatter(panels: Mapping[str, Tensor], labels: Tensor | None = None) -> Figure:
    """Draws the first two dimensions of vectors, one panel per method with shared limits."""
    figure = new_figure(3.2 * len(panels), 3.3)
    limit = 1.05 * max(float(x[:, :2].abs().quantile(0.995)) for x in panels.values())
    for i, (title, x) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), i + 1)
        second = x[:, min(1, x.shape[1] - 1)]
        colour: dict[str, Any] = (
            {"color": COLOURS[0]} if labels is None else {"c": labels, "cmap": "tab10"}
        )
        axes.scatter(x[:, 0].numpy(), second.numpy(), s=3, alpha=0.5, **colour)
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
        axes.set_title(title, fontsize=10)
        style_axes(axes)
    return figure


def plan_figure(phases: Sequence[Mapping[str, Any]]) -> Figure:
    """Draws phases over the log-SNR axis: steps, boundaries and score ranges.

    Args:
        phases: ``timesteps``, ``t_end``, ``score_range`` and ``log_snr`` (at timesteps and end;
            ``None`` where infinite) of every phase.
    """
    figure = new_figure(9, 0.62 * len(phases) + 1.5)
    axes = figure.add_subplot()
    finite = [v for phase in phases for v in phase["log_snr"] if v is not None]
    low, high = min([*finite, -4.0]) - 2.5, max([*finite, 4.0]) + 2.5
    for i, phase in enumerate(phases):
        values = [
            (low if j == 0 else high) if v is None else v for j, v in enumerate(phase["log_snr"])
        ]
        colour = COLOURS[i % len(COLOURS)]
        nested = phase["score_range"][1] == 1
        left = low if nested else values[0]
        axes.barh(-i, values[-1] - left, left=left, height=0.62, color=colour, alpha=0.18)
        axes.barh(-i, values[-1] - values[0], left=values[0], height=0.3, color=colour)
        axes.plot(values[:-1], [-i] * (len(values) - 1), "|", color="white", ms=9, mew=1.6)
        end, snr = phase["t_end"], phase["log_snr"][-1]
        label = f"t = {end:.3g}" + ("" if snr is None else f",  log-SNR {snr:.2f}")
        room = values[-1] + 0.15 < high - 2.3
        axes.text(
            values[-1] + (0.12 if room else -0.12),
            -i,
            label,
            va="center",
            fontsize=8,
            ha="left" if room else "right",
            color="black" if room else "white",
        )
    axes.set_yticks(
        [-i for i in range(len(phases))], [f"phase {i + 1}" for i in range(len(phases))]
    )
    axes.set(xlim=(low, high), xlabel="log-SNR   (noise on the left, data on the right)")
    axes.set_title("dark: subinterval of the expert    light: score range", fontsize=9)
    style_axes(axes)
    return figure


def loss_figure(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Draws every scalar, except counts, against the update, with phases concatenated."""
    seen: dict[str, set[float]] = {}
    for row in history:
        for name, value in row["scalars"].items():
            if not name.startswith("evaluations/"):
                seen.setdefault(name, set()).add(value)
    names = sorted(name for name, values in seen.items() if len(values) > 1) or sorted(seen)
    names = names[:SCALARS]
    figure = new_figure(9, 2.3 * math.ceil(len(names) / 2))
    ends: dict[int, int] = {}
    for row in history:
        ends[row["phase"]] = max(ends.get(row["phase"], 0), row["update"])
    for i, name in enumerate(names):
        axes = figure.add_subplot(math.ceil(len(names) / 2), 2, i + 1)
        start = 0
        for phase in sorted(ends):
            rows = [r for r in history if r["phase"] == phase and name in r["scalars"]]
            axes.plot(
                [start + r["update"] for r in rows],
                [r["scalars"][name] for r in rows],
                color=COLOURS[(phase - 1) % len(COLOURS)],
                linewidth=1.1,
                label=f"phase {phase}",
            )
            start += ends[phase]
        axes.set_title(name.replace("_", " ").replace("/", ": "), fontsize=9)
        axes.set_xlabel("update", fontsize=8)
        style_axes(axes)
        if i == 0:
            axes.legend(fontsize=7, frameon=False)
    return figure


def calibration_figure(curves: Sequence[Mapping[str, Any]]) -> Figure:
    """Draws the slopes of fake and real scores on the student's samples; 1 is calibrated."""
    figure = new_figure(9, 3.0)
    titles = {"fake": "fake score", "real": "teacher"}
    for i, (role, title) in enumerate(titles.items()):
        axes = figure.add_subplot(1, 2, i + 1)
        axes.axhline(1, color="black", linewidth=0.8, linestyle="--")
        for j, curve in enumerate(curves):
            axes.plot(
                curve["t"],
                curve[role],
                "o-",
                ms=3,
                linewidth=1.1,
                color=COLOURS[j % len(COLOURS)],
                label=f"phase {curve['phase']}",
            )
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("t")
        axes.set_ylabel("slope")
        style_axes(axes)
        axes.legend(fontsize=7, frameon=False)
    return figure


def tradeoff_figure(rows: Sequence[Mapping[str, Any]], quality: str, diversity: str) -> Figure:
    """Draws a quality and a diversity metric against the NFE."""
    figure = new_figure(9, 3.0)
    shown = [row for row in rows if row["nfe"]]
    for i, name in enumerate((quality, diversity)):
        axes = figure.add_subplot(1, 2, i + 1)
        for j, row in enumerate(shown):
            axes.plot(
                row["nfe"],
                row[name],
                "o",
                ms=8,
                color=COLOURS[j % len(COLOURS)],
                label=row["method"],
            )
        axes.set_xscale("log")
        ticks = sorted({row["nfe"] for row in shown})
        axes.set_xticks(ticks, [str(n) for n in ticks], minor=False)
        axes.set_xticks([], minor=True)
        axes.set_xlim(ticks[0] / 1.6, ticks[-1] * 1.6)
        axes.set(xlabel="network evaluations per sample", ylabel=name.replace("_", " "))
        style_axes(axes)
        axes.legend(fontsize=7, frameon=False)
    return figure
