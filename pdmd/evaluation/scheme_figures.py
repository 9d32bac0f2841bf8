"""Figures of schemes: quality against diversity, and both against cost and against guidance."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pdmd.evaluation.figures import new_figure, style_axes
from pdmd.extras import require

__all__ = [
    "AXES",
    "Axis",
    "colour_of",
    "cost_figure",
    "guidance_figure",
    "numbers_apart",
    "quality_figure",
]

COLOURS = {
    "teacher": "#222222",
    "one_step": "#8a7340",
    "vanilla": "#d9822b",
    "sgts": "#a8485f",
    "phased": "#3b6ea8",
}
"""Colours of schemes, by the start of their names."""
MARKERS = "osD^vPX"
LINES = ("-", "--", ":", "-.", (0, (6, 2, 1, 2, 1, 2)), (0, (1, 4)))
"""Lines of schemes that share a colour."""
DASHES = (":", "--", "-.")
BADGE = 17.0
"""Distance between the centres of two numbers, in points."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A metric as an axis of a figure.

    Attributes:
        metric: Its name in a results file.
        title: Its title.
        falls: Whether lower values are better, so that the axis is reversed.
        log: Whether its scale is logarithmic.
        ahead: What is ahead along it.
    """

    metric: str
    title: str
    falls: bool = False
    log: bool = False
    ahead: str = "better"


AXES: dict[str, tuple[Axis, Axis]] = {
    "mixture": (
        Axis(metric="klh", title="imbalance of modes (klh)", falls=True, log=True),
        Axis(metric="sw2", title="sliced Wasserstein distance", falls=True, log=True),
    ),
    "digits": (
        Axis(metric="cosine", title="cosine within a class", falls=True, ahead="more diverse"),
        Axis(metric="feature_distance", title="distance to the teacher", falls=True, log=True),
    ),
    "glyphs": (
        Axis(metric="vendi", title="Vendi score within a prompt", ahead="more diverse"),
        Axis(metric="feature_distance", title="distance to the teacher", falls=True, log=True),
    ),
    "fashion": (
        Axis(metric="vendi", title="Vendi score within a class", ahead="more diverse"),
        Axis(metric="feature_distance", title="distance to the teacher", falls=True, log=True),
    ),
    "clips": (
        Axis(metric="flow_spread", title="spread of motion in a prompt", ahead="more diverse"),
        Axis(metric="feature_distance", title="distance to the teacher", falls=True, log=True),
    ),
}
"""Diversity and quality of a benchmark."""


def quality_figure(
    summary: Sequence[Mapping[str, Any]], diversity: Axis, quality: Axis, *, title: str = ""
) -> Any:
    """Draws quality against diversity; up and to the right is better, up to the teacher.

    Args:
        summary: The result of :func:`~pdmd.evaluation.bench_report.summarise`.
        diversity: The horizontal axis.
        quality: The vertical axis.
        title: The figure's title.

    Returns:
        A matplotlib figure, with error bars of one standard deviation and the teacher's values as
        lines. Numbers are moved apart, and the legend has the scheme of each.
    """
    require("report", "matplotlib")
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullFormatter

    drawn = [e for e in summary if diversity.metric in e and quality.metric in e]
    rows = -(-len(drawn) // 2)
    figure = new_figure(5.6, 4.6 + 0.22 * rows)
    axes = figure.add_subplot()
    handles = []
    for number, entry in enumerate(drawn, 1):
        (x, dx), (y, dy) = entry[diversity.metric], entry[quality.metric]
        colour = colour_of(entry["method"])
        axes.errorbar(x, y, xerr=dx, yerr=dy, fmt="o", ms=4, lw=1, color=colour, alpha=0.8)
        if entry["method"] == "teacher":
            axes.axvline(x, color=colour, lw=0.8, ls=":")
            axes.axhline(y, color=colour, lw=0.8, ls=":")
        name = f"{number}  {entry['method']}"
        handles.append(Line2D([], [], marker="o", ls="", color=colour, label=name))
    for axis, name in ((diversity, "x"), (quality, "y")):
        if axis.log:
            getattr(axes, f"set_{name}scale")("log")
            place = getattr(axes, f"{name}axis")
            place.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
            place.set_major_formatter(lambda value, _: f"{value:.3g}")
            place.set_minor_formatter(NullFormatter())
        if axis.falls:
            getattr(axes, f"invert_{name}axis")()
        arrow = "\N{RIGHTWARDS ARROW}"
        getattr(axes, f"set_{name}label")(f"{axis.title}, {axis.ahead} {arrow}", fontsize=11)
    axes.tick_params(labelsize=10, which="both")
    style_axes(axes)
    if title:
        axes.set_title(title, fontsize=12)
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=10, frameon=False)
    _number_points(figure, axes, drawn, diversity, quality)
    return figure


def cost_figure(
    summaries: Sequence[Sequence[Mapping[str, Any]]], metrics: Sequence[Axis], *, title: str = ""
) -> Any:
    """Draws metrics against the cost of training, a line per scheme.

    Args:
        summaries: A result of :func:`~pdmd.evaluation.bench_report.summarise` per cost, each with
            ``forwards``, the cost in forward passes of one batch.
        metrics: The metrics, a panel each.
        title: The figure's title.

    Returns:
        A matplotlib figure, with error bars of one standard deviation; what costs nothing, such as
        the teacher, is a horizontal line.
    """
    points = [(e["forwards"][0], e) for summary in summaries for e in summary]
    figure, axes = _lines(points, metrics, title)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("cost of training, in forward passes of a batch", fontsize=11)
    return figure


def guidance_figure(
    summaries: Mapping[float, Sequence[Mapping[str, Any]]],
    metrics: Sequence[Axis],
    *,
    title: str = "",
) -> Any:
    """Draws metrics against the guidance of the teacher, a line per scheme and for the teacher.

    Args:
        summaries: A result of :func:`~pdmd.evaluation.bench_report.summarise` by guidance scale.
        metrics: The metrics, a panel each.
        title: The figure's title.

    Returns:
        A matplotlib figure, with error bars of one standard deviation, of the schemes that were
        measured at every scale.
    """
    methods = [{e["method"] for e in summary} for summary in summaries.values()]
    everywhere = set.intersection(*methods)
    points = [
        (scale, e)
        for scale, summary in summaries.items()
        for e in summary
        if e["method"] in everywhere
    ]
    figure, axes = _lines(points, metrics, title)
    axes.set_xticks(sorted(summaries))
    axes.set_xlabel("guidance scale of the teacher", fontsize=11)
    return figure


def _lines(
    points: Sequence[tuple[float, Mapping[str, Any]]], metrics: Sequence[Axis], title: str
) -> tuple[Any, Any]:
    """Draws a panel per metric with a line per scheme, horizontal if it is at 0 throughout.

    Returns:
        The figure, and its lowest panel.
    """
    require("report", "matplotlib")
    from matplotlib.ticker import LogLocator, NullFormatter

    names = list(dict.fromkeys(entry["method"] for _, entry in points))
    figure = new_figure(5.6, 2.8 * len(metrics) + 0.3 + 0.22 * -(-len(names) // 2))
    panels = figure.subplots(len(metrics), sharex=True, squeeze=False)[:, 0]
    free = [name for name in names if all(x == 0 for x, e in points if e["method"] == name)]
    dashes = dict(zip(free, itertools.cycle(DASHES), strict=False))
    alike = [[name for name in names if colour_of(name) == c] for c in map(colour_of, names)]
    lines = {n: LINES[a.index(n) % len(LINES)] for n, a in zip(names, alike, strict=True)}
    for axes, metric in zip(panels, metrics, strict=True):
        for number, name in enumerate(names):
            own = [(x, e) for x, e in points if e["method"] == name and metric.metric in e]
            style = {"color": colour_of(name), "label": name, "lw": 1.2, "alpha": 0.9}
            if name in dashes:
                for _, e in own[:1]:
                    axes.axhline(e[metric.metric][0], ls=dashes[name], **style)
                continue
            own.sort(key=lambda pair: pair[0])
            mean, deviation = zip(*[e[metric.metric] for _, e in own], strict=True)
            marker = MARKERS[number % len(MARKERS)]
            style |= {"marker": marker, "ms": 5, "ls": lines[name]}
            axes.errorbar([x for x, _ in own], mean, yerr=deviation, **style)
        if metric.log:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        if metric.falls:
            axes.invert_yaxis()
        arrow = "\N{RIGHTWARDS ARROW}"
        axes.set_ylabel(f"{metric.title},\n{metric.ahead} {arrow}", fontsize=10)
        axes.tick_params(labelsize=10, which="both")
        style_axes(axes)
    if title:
        panels[0].set_title(title, fontsize=12)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=10, frameon=False)
    return figure, panels[-1]


def colour_of(method: str) -> str:
    """Returns the colour of a scheme: those whose names start alike share it."""
    return next((c for start, c in COLOURS.items() if method.startswith(start)), "#4d9a57")


def _number_points(
    figure: Any, axes: Any, drawn: Sequence[Mapping[str, Any]], diversity: Axis, quality: Axis
) -> None:
    """Writes numbers beside points, moved apart, with a line to the point of each."""
    figure.draw_without_rendering()  # fixes the scales
    points = axes.transData.transform(
        [(entry[diversity.metric][0], entry[quality.metric][0]) for entry in drawn]
    )
    points = points * 72 / figure.dpi
    offsets = numbers_apart(points)
    for number, (entry, offset) in enumerate(zip(drawn, offsets, strict=True), 1):
        axes.annotate(
            str(number),
            (entry[diversity.metric][0], entry[quality.metric][0]),
            xytext=tuple(offset),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=9,
            color="white",
            bbox={"boxstyle": "circle,pad=0.25", "fc": colour_of(entry["method"]), "ec": "white"},
            arrowprops={"arrowstyle": "-", "lw": 0.7, "color": "#777777"},
        )


def numbers_apart(points: np.ndarray) -> np.ndarray:
    """Returns offsets of numbers from their points, in points, that do not cover one another."""
    angles = np.linspace(0, 2 * np.pi, len(points), endpoint=False)
    start = BADGE * np.stack((np.cos(angles), np.sin(angles)), -1)
    badges = points + start
    for _ in range(300):
        gaps = badges[:, None] - badges[None]
        away = _push(gaps)
        gaps = badges[:, None] - points[None]
        away += _push(gaps, least=0.7 * BADGE)
        badges = badges + away - 0.02 * (badges - points)
    return badges - points


def _push(gaps: np.ndarray, least: float = BADGE) -> np.ndarray:
    distance = np.linalg.norm(gaps, axis=-1, keepdims=True)
    near = (distance < least) & (distance > 0)
    return np.where(near, gaps / np.maximum(distance, 1e-6) * (least - distance) / 2, 0.0).sum(1)
