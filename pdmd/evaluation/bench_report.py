"""The report of a benchmark: a self-contained HTML page."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pdmd.documents import naming
from pdmd.extras import require
from pdmd.files import local_path, write_file

__all__ = ["summarise", "tradeoff_figures", "write_bench_report"]

COST = ("nfe", "forwards", "cpu_seconds", "saved_mib")
QUALITY = {
    "toy1d": ("trajectory_rmse",),
    "mixture": ("sw2", "klh"),
    "digits": ("feature_distance", "coverage", "cosine"),
    "glyphs": ("feature_distance", "vendi", "faces"),
    "fashion": ("feature_distance", "vendi", "coverage"),
}
"""The metrics of the trade-off plots, by benchmark; quality first."""


def summarise(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the mean and standard deviation of every metric, by method.

    Args:
        rows: Rows of a results file.

    Returns:
        For each method, in the order of the rows, ``{"method", "n", name: (mean, std), ...}``;
        the sample standard deviation, 0 for one seed, and the number of rows ``n``.
    """
    out = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        entry: dict[str, Any] = {"method": method, "n": len(own)}
        for name in own[0]:
            if name in ("method", "seed", "run"):
                continue
            values = [float(row[name]) for row in own]
            entry[name] = (
                statistics.fmean(values),
                statistics.stdev(values) if len(values) > 1 else 0.0,
            )
        out.append(entry)
    return out


def tradeoff_figures(summary: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Any:
    """Plots metrics against the NFE and against the cost of training.

    Args:
        summary: The result of :func:`summarise`.
        names: The metrics.

    Returns:
        A matplotlib figure.
    """
    require("report", "matplotlib")
    from pdmd.evaluation.figures import new_figure, style_axes
    from pdmd.evaluation.scheme_figures import colour_of

    figure = new_figure(10.5, 3.1 * len(names) + 0.3)
    costs = {
        "nfe": "network evaluations per sample",
        "forwards": "training cost, forward passes of one batch",
    }
    handles: dict[str, Any] = {}
    for i, name in enumerate(names):
        for j, (cost, label) in enumerate(costs.items()):
            axes = figure.add_subplot(len(names), 2, 2 * i + j + 1)
            for k, entry in enumerate(summary):
                if name not in entry or entry[cost][0] <= 0:
                    continue
                handles[entry["method"]] = axes.errorbar(
                    entry[cost][0],
                    entry[name][0],
                    yerr=entry[name][1],
                    marker=f"${k + 1}$",
                    ls="",
                    ms=6 if k < 9 else 10,
                    lw=0.8,
                    color=colour_of(entry["method"]),
                )
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.xaxis.set_minor_formatter(lambda value, _: "")
            axes.set_xlabel(label, fontsize=8)
            axes.set_ylabel(name.replace("_", " "), fontsize=9)
            style_axes(axes)
    figure.legend(
        list(handles.values()), list(handles), loc="outside right upper", fontsize=7, frameon=False
    )
    return figure


def write_bench_report(results: Mapping[str, Any], out: str | Path) -> Path:
    """Writes the report.

    Args:
        results: The content of a results file.
        out: The HTML file to write.

    Returns:
        Its path.
    """
    require("report", "jinja2", "matplotlib")
    from jinja2 import Environment, PackageLoader, select_autoescape

    from pdmd.evaluation.figures import data_uri, is_picture
    from pdmd.evaluation.scheme_figures import AXES, quality_figure

    with naming("the content of a results file", "measure again"):
        name = results["config"]["name"]
        summary = summarise(results["rows"])
        names = dict.fromkeys(name for entry in summary for name in entry)
        metrics = [name for name in names if name not in ("method", "n", *COST)]
        plotted = [k for k in QUALITY.get(name, ()) if k in metrics]
        axes = [a for a in AXES.get(name, ()) if a.metric in metrics]
        environment = Environment(
            loader=PackageLoader("pdmd.evaluation", "."),
            autoescape=select_autoescape(["j2", "html"]),
        )
        page = environment.get_template("bench.html.j2").render(
            name=name,
            config=results["config"],
            version=results["version"],
            summary=summary,
            metrics=metrics,
            cost=[c for c in COST if summary and c in summary[0]],
            quality=data_uri(quality_figure(summary, *axes), dpi=110) if len(axes) == 2 else None,
            tradeoff=data_uri(tradeoff_figures(summary, plotted)) if plotted else None,
            samples={k: v for k, v in results.get("samples", {}).items() if is_picture(v)},
            about=results.get("methods", {}),
            number=_number,
        )
    path = local_path(out, "a report")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, page.encode("utf-8", "replace"))
    return path


def _number(value: float) -> str:
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    if value == int(value):
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
