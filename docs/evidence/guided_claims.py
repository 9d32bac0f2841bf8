"""The claims about guided, conditional teachers: glyphs, fashion and clips."""

from pdmd.evaluation.bench_report import summarise

__all__ = ["guided_claims"]

PUBLISHED = ("one_step", "vanilla", "sgts", "sgts_ode")
PHASED = ("phased", "phased_late", "phased_2x2", "phased_lora", "phased_buffer")
DIVERSITY = {"glyphs": "vendi", "fashion": "vendi", "clips": "flow_spread"}
NAMES = {"vendi": "Vendi", "flow_spread": "spread of motion"}


def guided_claims(results):
    """Returns the table of claims of a results file."""
    bench = results["config"]["name"]
    m = {e["method"]: e for e in summarise(results["rows"])}
    lines = ["| claim | figures | shows |", "| --- | --- | --- |"]

    def add(text, holds, figures):
        lines.append(f"| {text} | {figures} | {'**yes**' if holds else '**no**'} |")

    def v(method, metric):
        return m[method][metric][0]

    published, phased = [p for p in PUBLISHED if p in m], [p for p in PHASED if p in m]
    ours = phased[0]
    diversity = DIVERSITY[bench]
    for metric, words, sign, digits in (
        ("feature_distance", "closer to the teacher's samples", 1, 1),
        (diversity, f"more diverse within a prompt ({NAMES[diversity]})", -1, 2),
    ):
        best = min(published, key=lambda name: sign * v(name, metric))
        add(
            f"`{ours}` is {words} than one step, vanilla and SGTS",
            sign * v(ours, metric) < sign * v(best, metric),
            f"{v(ours, metric):.{digits}f} against {v(best, metric):.{digits}f} of `{best}`, the "
            f"best of these; the teacher {v('teacher', metric):.{digits}f}",
        )
    both = [
        name
        for name in phased
        if all(
            v(name, "feature_distance") < v(other, "feature_distance")
            and v(name, diversity) > v(other, diversity)
            for other in published
        )
    ]
    add(
        "A phased scheme is both closer and more diverse than every published one",
        bool(both),
        ", ".join(f"`{name}`" for name in both) or "none",
    )
    ahead = [
        name
        for name in published
        if v(name, "feature_distance") < v(ours, "feature_distance")
        and v(name, diversity) > v(ours, diversity)
    ]
    add(
        f"No published scheme is both closer and more diverse than `{ours}`",
        not ahead,
        ", ".join(f"`{name}`" for name in ahead) or "none",
    )
    if "teacher_euler_4" in m:
        own, whole = v(ours, diversity), v("teacher", diversity)
        few = v("teacher_euler_4", diversity)
        spread = max(m[name][diversity][1] for name in (ours, "teacher"))
        add(
            f"`{ours}` keeps the teacher's diversity ({NAMES[diversity]}), 4 Euler steps lose it",
            own >= whole - spread and few < whole - spread,
            f"{own:.2f} ± {spread:.2f}; the teacher {whole:.2f}, 4 Euler steps {few:.2f}",
        )
    if bench == "clips":
        flows = {
            name: v(name, "relative_flow") for name in ("sgts", "sgts_ode", ours) if name in m
        }
        spread = m["sgts"]["relative_flow"][1]
        add(
            "SGTS slows motion down, and phases keep it",
            flows["sgts"] < 1 - spread and abs(flows[ours] - 1) < abs(flows["sgts"] - 1),
            "; ".join(f"`{name}` {value:.3f}" for name, value in flows.items())
            + " of the teacher's speed",
        )
    boundaries = [k for k in m[ours] if k.startswith("boundary_")]
    if boundaries:
        values = [v(ours, k) for k in boundaries]
        add(
            f"The error of `{ours}` grows from boundary to boundary: the later phases make most",
            values == sorted(values),
            ", ".join(f"{value:.2f}" for value in values)
            + " times that of two draws of the teacher",
        )
    return "\n".join(lines)
