"""Writes the evidence page from the results files in this folder.

python docs/evidence/make.py [--check]
"""

import dataclasses
import json
import sys
from pathlib import Path

from claims import CLAIMS
from columns import COLUMNS, RANGES, explain
from error_table import capacity_table, fake_score_table
from guided_claims import by_guidance_claims

from pdmd.benchmarks import BenchConfig, read_results
from pdmd.benchmarks.fashion import GUIDANCE
from pdmd.benchmarks.held_out_prompts import HeldOutPromptsBenchmark
from pdmd.evaluation.bench_report import summarise
from pdmd.evaluation.figures import png
from pdmd.evaluation.scheme_figures import AXES, cost_figure, guidance_figure, quality_figure

HERE = Path(__file__).parent
TITLES = {
    "toy1d": "A one-dimensional toy problem",
    "mixture": "The mixture",
    "digits": "The digits",
    "glyphs": "Glyphs: guided text-to-image",
    "fashion": "Fashion: guided clothes of ten classes",
    "clips": "Clips: guided text-to-video",
    "efficiency_mixture": "Efficiency settings, on the mixture",
    "efficiency_digits": "Efficiency settings, on the digits",
    "efficiency_glyphs": "Efficiency settings, on glyphs",
    "overhead": "The trainer's overhead",
    "memory": "The memory of a rank, from loading to export",
    "speed": "Speed against a hand-written loop, a peer and the full rollout",
}
DIGITS = {
    "trajectory_rmse": 4,
    **dict.fromkeys(("log_likelihood_gap", "peak_mib", "kept_mib", "unit_mib", "bound_mib"), 1),
}
"""Decimals of metrics that have not three."""
FURTHER = (
    "held_out_feature_distance",
    "held_out_vendi",
    "boundary_1",
    "boundary_2",
    "boundary_3",
)
"""Metrics of a second table, where they were measured: by phase, and with held-out prompts."""
GUIDED = ("glyphs", "fashion", "clips")
DEFAULT_GUIDANCE = {
    "glyphs": HeldOutPromptsBenchmark.guidance,
    "clips": HeldOutPromptsBenchmark.guidance,
    "fashion": GUIDANCE,
}
BY_GUIDANCE = (
    *("teacher", "teacher_euler_4", "one_step", "vanilla", "sgts", "sgts_ode", "phased"),
    *("phased_2x2_full", "phased_fast_fake", "phased_shared", "phased_disjoint"),
)
"""Methods of the figures by guidance; the tables have all."""
SEARCHED = ("feature_distance", "vendi", "accuracy", "coverage", "relative_flow", "flow_spread")
COSTS = {"nfe": "{:.0f}", "forwards": "{:,.0f}", "saved_mib": "{:.2f}"}


def load(name):
    path = HERE / f"{name}.json"
    return read_results(path) if path.exists() else None


def table(results, metrics, costs=True):
    """Returns a table of the methods that have one of the metrics, and of their costs."""
    summary = [e for e in summarise(results["rows"]) if any(m in e for m in metrics)]
    costs = {k: v for k, v in COSTS.items() if costs and any(e.get(k, (0, 0))[0] for e in summary)}
    titles = [RANGES[m][1] if m in RANGES else COLUMNS[m][0] for m in (*metrics, *costs)]
    head = ["method", "n", *titles]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for e in summary:
        cells = [f"`{e['method']}`", str(e["n"])]
        for m in metrics:
            if m not in e:
                cells.append("")
                continue
            mean, std = e[m]
            digits = DIGITS.get(m, 3)
            if m in RANGES:
                cells.append(f"{mean:.3f} to {e[RANGES[m][0]][0]:.3f}")
                continue
            spread = f"\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{std:.{digits}f}" if e["n"] > 1 else ""
            cells.append(f"{mean:.{digits}f}{spread}")
        cells += [form.format(e[key][0]) for key, form in costs.items()]
        lines.append("| " + " | ".join(cells) + " |")
    seeds = ["n"] if any(e["n"] > 1 for e in summary) else []
    return "\n".join(lines) + "\n\n" + explain([*seeds, *metrics, *costs])


def machine(results):
    """Returns the machine of timings; the other benchmarks do not depend on it."""
    if results["config"]["name"] != "speed":
        return []
    m = results["machine"]
    where = "" if m["device"] == "cpu" else f" and {m['device']}"
    return [f"Measured on {m['processor']}{where}, {m['threads']} thread, torch {m['torch']}."]


METRICS = {
    "toy1d": ("trajectory_rmse",),
    "mixture": ("klh", "sw2", "modes", "log_likelihood_gap"),
    "digits": ("feature_distance", "feature_distance_real", "cosine", "coverage", "precision"),
    "glyphs": (
        "feature_distance",
        "accuracy",
        "cosine",
        "vendi",
        "faces",
        "coverage",
        "precision",
    ),
    "fashion": (
        "feature_distance",
        "feature_distance_real",
        "accuracy",
        "cosine",
        "vendi",
        "coverage",
        "precision",
    ),
    "clips": (
        "feature_distance",
        "accuracy",
        "relative_flow",
        "flow_spread",
        "directions",
        "vendi",
        "coverage",
    ),
    "efficiency_mixture": ("klh", "sw2", "modes"),
    "efficiency_digits": ("feature_distance", "coverage", "cosine"),
    "efficiency_glyphs": ("feature_distance", "vendi", "faces", "coverage"),
    "overhead": ("ratio", "ratio_low", "pdmd_ms", "bare_ms"),
    "memory": ("peak_mib", "bound_mib", "kept_mib", "unit_mib"),
    "speed": (
        "cycles_per_second",
        "speed",
        "speed_low",
        "median_low",
        "peak_mib",
        "memory",
        "evaluations",
        "fake_updates",
    ),
}


def command(name, results):
    """Returns the command that measures a results file."""
    config, bench = results["config"], name.split("_")[-1]
    defaults = dataclasses.asdict(BenchConfig(name=bench))
    words = [f"pdmd bench {bench}"]
    if bench != name:
        words += ["--methods", *dict.fromkeys(row["method"] for row in results["rows"])]
    for key, value in config.items():
        if key != "name" and value != defaults.get(key, value):
            words += [f"--{key.replace('_', '-')}", "FOLDER" if key == "data" else f"{value:g}"]
    return " ".join(words)


def others(name):
    """Returns the results of a benchmark with other options: of guidance, of seeds, of cost."""
    found = [read_results(path) for path in sorted(HERE.glob(f"{name}_*.json"))]
    return sorted(found, key=lambda results: results["config"].get("forwards", 0))


def equal_costs(name):
    """Returns the results at equal cost of training, from the lowest."""
    found = [results for results in (load(name), *others(name)) if results is not None]
    found = [results for results in found if results["config"].get("forwards")]
    return sorted(found, key=lambda results: results["config"]["forwards"])


def by_guidance(name):
    """Returns the summaries of a benchmark by guidance, from the lowest, where there are several.

    Of the results with other options, only those that differ in guidance alone are among them.
    """
    results, found = load(name), {}
    for other in (results, *others(name)):
        own = {**other["config"], "guidance": results["config"].get("guidance")}
        if own == results["config"]:
            scale = other["config"].get("guidance") or DEFAULT_GUIDANCE[name]
            found[scale] = summarise(other["rows"])
    return dict(sorted(found.items())) if len(found) > 1 else {}


def guidance_table(name, metrics):
    """Returns a table of two metrics by guidance, of the methods measured at every scale."""
    found = by_guidance(name)
    rows = {scale: {e["method"]: e for e in summary} for scale, summary in found.items()}
    methods = [m for m in next(iter(rows.values())) if all(m in row for row in rows.values())]
    words = " / ".join(COLUMNS[m][0] for m in metrics)
    lines = [
        "| method | " + " | ".join(f"{words}, guidance {scale:g}" for scale in rows) + " |",
        "|" + " --- |" * (1 + len(rows)),
    ]
    for method in methods:
        cells = [
            " / ".join(f"{row[method][m][0]:.{d}f}" for m, d in zip(metrics, (1, 2), strict=True))
            for row in rows.values()
        ]
        lines.append(f"| `{method}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def variant(name, results, other):
    """Returns the section of results with other options."""
    config = other["config"]
    same = {"name", "updates", "batch_size", "samples"}
    default = results["config"]
    changed = {k: v for k, v in config.items() if k not in same and v != default.get(k, v)}
    forwards = changed.pop("forwards", 0)
    words = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in changed.items())
    if forwards:
        words = f", {words}" if words else ""
        head = f"### At equal cost: {forwards:,} forward passes of a batch{words}"
        return [head, CLAIMS[name](other), table(other, METRICS[name])]
    if set(changed) <= {"guidance"}:
        head = "### With " + ", ".join(f"{k.replace('_', ' ')} {v:g}" for k, v in changed.items())
    else:
        head = f"### Held out: {words}"
    claims = [CLAIMS[name](other)] if name in GUIDED else []
    return [head, *claims, table(other, METRICS[name])]


def of_errors(results, other):
    """Returns whether results serve the section on errors alone."""
    config = other["config"]
    equal = results["config"].get("forwards") and config.get("updates")
    return bool(config.get("fake_updates") or equal)


def by_fake_updates(name):
    """Returns results with few and many fake updates, where both were measured, and the floor."""
    every = [results for results in (load(name), *others(name)) if results is not None]
    for many in every:
        few = {**many["config"], "fake_updates": 0}
        found = [results for results in every if results["config"] == few]
        if many["config"].get("fake_updates") and found:
            teacher = [e for e in summarise(load(name)["rows"]) if e["method"] == "teacher"]
            return found[0], many, teacher[0]["feature_distance"][0]
    return None


def errors():
    """Returns the section on where the error of students comes from."""
    pairs = {name: by_fake_updates(name) for name in GUIDED}
    pairs = {name: found for name, found in pairs.items() if found}
    if not pairs:
        return []
    results = {name: load(name) for name in GUIDED if load(name) is not None}
    return [
        "## Where the error comes from",
        "**The fake score.** The distance to the teacher's samples at equal generator updates, "
        "each with few and with many fake updates. The floor is the distance between two draws "
        "of the teacher; the share is the part of the error above it that the better fake score "
        "removes. The options are `--updates 120 --guidance 3` for glyphs, `--updates 80` for "
        "clips and none for fashion, without and with `--fake-updates 8`.",
        fake_score_table(pairs),
        "**Capacity.** The distance of schemes that differ in the number of trained parameters, "
        "over the seeds that all have.",
        capacity_table(results),
        (HERE / "errors_notes.md").read_text().rstrip(),
    ]


def trials(name):
    """Returns the section of a search, or nothing where there was none."""
    path = HERE / f"search_{name}.json"
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    guidance = {row["guidance"] for row in found.values() if "guidance" in row}
    where = f" --guidance {guidance.pop():g}" if guidance else ""
    shown = [m for m in SEARCHED if any(m in row for row in found.values())]
    head = ["trial", "cost", *(COLUMNS[m][0] for m in shown)]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for key, row in found.items():
        trial, forwards = key.rsplit(" ", 1)
        values = [f"{row[m]:.{2 if row[m] < 100 else 0}f}" if m in row else "" for m in shown]
        lines.append(f"| `{trial}` | {int(forwards):,} | " + " | ".join(values) + " |")
    return [
        "### The search",
        f"`python docs/evidence/guided_search.py {name}{where}` lists these trials and runs "
        "them, each with a seed that no other table has. Trials change learning rates, the number "
        "of fake updates, the plan, shares of updates, first weights. Cost: forward passes of a "
        "batch.",
        "\n".join(lines) + "\n\n" + explain(shown),
    ]


def page():
    parts = [(HERE / "intro.md").read_text().rstrip()]
    for name, title in TITLES.items():
        results, notes = load(name), HERE / f"{name}_notes.md"
        if results is None:
            if notes.exists():  # not measured yet: how to do so
                parts += [f"## {title}", notes.read_text().rstrip()]
            continue
        seeds = sorted({row["seed"] for row in results["rows"]})
        parts += [
            f"## {title}",
            f"`{command(name, results)} --seeds {' '.join(map(str, seeds))}`, in "
            f"`docs/evidence/{name}.json` (pdmd {results['version']}).",
            *machine(results),
            CLAIMS[name](results),
            table(results, METRICS[name]),
        ]
        if name in AXES:
            parts.append(f"![Quality against diversity on {name}, a point a method]({name}.png)")
        further = [m for m in FURTHER if any(m in row for row in results["rows"])]
        if further:
            parts.append(table(results, further, costs=False))
        if name in GUIDED and by_guidance(name):
            quality = ("feature_distance", AXES[name][0].metric)
            parts += [
                "### By guidance",
                by_guidance_claims(name, by_guidance(name)),
                guidance_table(name, quality),
                f"![Quality and diversity on {name} by guidance]({name}_guidance.png)",
            ]
        for other in others(name):
            if not of_errors(results, other):
                parts += variant(name, results, other)
        if len(equal_costs(name)) > 1:
            parts.append(f"![Quality and diversity on {name} against cost]({name}_cost.png)")
        parts += trials(name)
        if notes.exists():
            parts.append(notes.read_text().rstrip())
        if name == GUIDED[-1]:
            parts += errors()
    return "\n\n".join(parts) + "\n"


def main():
    out, text = HERE / "index.md", page()
    if "--check" in sys.argv:
        if out.read_text() != text:
            sys.exit(
                "docs/evidence/index.md does not match the results; run docs/evidence/make.py"
            )
        return
    out.write_text(text)
    for name, axes in AXES.items():
        results = load(name)
        if results is not None:
            figure = quality_figure(summarise(results["rows"]), *axes)
            (HERE / f"{name}.png").write_bytes(png(figure))
        scales = by_guidance(name) if name in GUIDED and results is not None else {}
        if scales:
            drawn = {g: [e for e in s if e["method"] in BY_GUIDANCE] for g, s in scales.items()}
            figure = guidance_figure(drawn, axes[::-1])
            (HERE / f"{name}_guidance.png").write_bytes(png(figure))
        costs = [summarise(other["rows"]) for other in equal_costs(name)]
        if len(costs) > 1:
            (HERE / f"{name}_cost.png").write_bytes(png(cost_figure(costs, axes[::-1])))
    print(out)


if __name__ == "__main__":
    main()
