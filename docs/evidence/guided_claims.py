"""The claims about guided, conditional teachers: glyphs, fashion and clips."""

from pdmd.evaluation.bench_report import summarise

__all__ = ["by_guidance_claims", "guided_claims"]

PUBLISHED = ("one_step", "vanilla", "sgts", "sgts_ode")
WORDS = {"one_step": "one step", "vanilla": "vanilla", "sgts": "SGTS", "sgts_ode": "SGTS"}
FULL, PAPER = "phased_2x2_full", "phased"
PHASED = (
    *(FULL, "phased_1x3_full", PAPER, "phased_late", "phased_2x2"),
    *("phased_lora", "phased_buffer", "phased_fast_fake"),
)
DISTANCE, DIVERSITY = "feature_distance", {"clips": "flow_spread"}
NAMES = {"vendi": "Vendi", "flow_spread": "spread of motion"}


class Means:
    """The means of a results file, and statements about them."""

    def __init__(self, bench, summary):
        self.bench = bench
        self.means = {e["method"]: e for e in summary}
        self.diversity = DIVERSITY.get(self.bench, "vendi")
        self.published = [name for name in PUBLISHED if name in self.means]
        *words, last = dict.fromkeys(WORDS[name] for name in self.published)
        self.them = f"{', '.join(words)} and {last}" if words else last

    def of(self, method, metric):
        return self.means[method][metric][0]

    def gap(self, method):
        """The difference of a method's diversity from the teacher's, in either direction."""
        return abs(self.of(method, self.diversity) - self.of("teacher", self.diversity))

    def ahead(self, name, other):
        """Whether a method is both closer and more diverse than another."""
        closer = self.of(name, DISTANCE) < self.of(other, DISTANCE)
        return closer and self.of(name, self.diversity) > self.of(other, self.diversity)

    def nearer(self, name, other):
        """Whether a method is closer, and its diversity nearer to the teacher's."""
        closer = self.of(name, DISTANCE) < self.of(other, DISTANCE)
        return closer and self.gap(name) < self.gap(other)


def guided_claims(results):
    """Returns the table of claims of a results file."""
    g = Means(results["config"]["name"], summarise(results["rows"]))
    phased = [name for name in PHASED if name in g.means]
    first = dict.fromkeys((phased[0], PAPER))
    rows = [row for ours in first if ours in g.means for row in _against(g, ours)]
    every = "every published one" if "SGTS" in g.them else g.them
    for words, relation in (
        (f"more diverse than {every}", g.ahead),
        (f"nearer to the teacher's diversity than {every}", g.nearer),
    ):
        found = [name for name in phased if all(relation(name, p) for p in g.published)]
        text = f"A phased scheme is both closer and {words}"
        rows.append((text, ", ".join(f"`{name}`" for name in found) or "none", bool(found)))
    if PAPER in g.means:
        rows.append(_beyond_the_paper(g, phased, every))
    ours = phased[0]
    rows += _losses(g, ours)
    if g.bench == "clips" and "sgts" in g.means:
        rows.append(_motion(g, ours))
    four = next((name for name in (PAPER, "phased_late") if name in g.means), None)
    rows += _boundaries(g, four) if four else []
    return _table(rows)


def by_guidance_claims(bench, summaries):
    """Returns the table of claims about summaries by guidance, from the lowest."""
    found = [Means(bench, summary) for summary in summaries.values()]
    everywhere = [name for name in found[0].published if all(name in g.means for g in found)]
    rows = []
    for metric, words, sign in ((DISTANCE, "distance", 1), (found[0].diversity, "diversity", -1)):
        ratios = []
        for g in found:
            best = min((g.of(name, metric) for name in everywhere), key=lambda v: sign * v)
            ratios.append((best / g.of(PAPER, metric)) ** sign)
        at = ", ".join(
            f"{ratio:.2f} at {scale:g}" for scale, ratio in zip(summaries, ratios, strict=True)
        )
        over = "that of the closest of them over its own"
        rows.append(
            (
                f"The stronger the guidance, the more `{PAPER}` is ahead of {found[0].them} in "
                f"{words}",
                f"{over if sign > 0 else 'its own over the highest of them'}: {at}",
                ratios == sorted(ratios) and ratios[-1] > 1,
            )
        )
    return _table(rows)


def _table(rows):
    lines = ["| claim | figures | shows |", "| --- | --- | --- |"]
    lines += [
        f"| {text} | {why} | {'**yes**' if holds else '**no**'} |" for text, why, holds in rows
    ]
    return "\n".join(lines)


def _against(g, ours):
    for metric, words, sign, digits in (
        (DISTANCE, "closer to the teacher's samples", 1, 1),
        (g.diversity, f"more diverse within a prompt ({NAMES[g.diversity]})", -1, 2),
    ):
        best = min(g.published, key=lambda name: sign * g.of(name, metric))
        own, theirs, teacher = (g.of(name, metric) for name in (ours, best, "teacher"))
        yield (
            f"`{ours}` is {words} than {g.them}",
            f"{own:.{digits}f} against {theirs:.{digits}f} of `{best}`, the best of these; the "
            f"teacher {teacher:.{digits}f}",
            sign * own < sign * theirs,
        )


def _beyond_the_paper(g, phased, every):
    most = g.of(PAPER, "forwards")
    found = [
        name
        for name in phased
        if name != PAPER
        and g.of(name, "forwards") <= most
        and all(g.ahead(name, other) for other in (PAPER, *g.published))
    ]
    return (
        f"A phased scheme is both closer and more diverse than `{PAPER}` and {every}, at no more "
        f"forward passes than `{PAPER}`",
        ", ".join(f"`{name}` ({g.of(name, 'forwards'):,.0f})" for name in found)
        + f" against {most:,.0f}"
        if found
        else "none",
        bool(found),
    )


def _losses(g, ours):
    for words, relation in (
        ("closer and more diverse", g.ahead),
        ("closer and nearer to the teacher's diversity", g.nearer),
    ):
        found = [name for name in g.published if relation(name, ours)]
        neither = f"Neither {g.them}".replace(" and ", " nor ")
        none = "No published scheme" if "SGTS" in g.them else neither
        text = f"{none} is both {words} than `{ours}`"
        yield text, ", ".join(f"`{name}`" for name in found) or "none", not found
    if "teacher_euler_4" in g.means:
        own, whole, few = (g.of(n, g.diversity) for n in (ours, "teacher", "teacher_euler_4"))
        spread = max(g.means[name][g.diversity][1] for name in (ours, "teacher"))
        yield (
            f"`{ours}` keeps the teacher's diversity ({NAMES[g.diversity]}), 4 Euler steps lose "
            "it",
            f"{own:.2f} ± {spread:.2f}; the teacher {whole:.2f}, 4 Euler steps {few:.2f}",
            own >= whole - spread and few < whole - spread,
        )


def _motion(g, ours):
    flows = {
        name: g.of(name, "relative_flow") for name in ("sgts", "sgts_ode", ours) if name in g.means
    }
    spread = g.means["sgts"]["relative_flow"][1]
    return (
        "SGTS slows motion down, and phases keep it",
        "; ".join(f"`{name}` {value:.3f}" for name, value in flows.items())
        + " of the teacher's speed",
        flows["sgts"] < 1 - spread and abs(flows[ours] - 1) < abs(flows["sgts"] - 1),
    )


def _boundaries(g, ours):
    values = [value[0] for key, value in g.means[ours].items() if key.startswith("boundary_")]
    if values:
        yield (
            f"The error of `{ours}` grows from boundary to boundary: the later phases make most",
            ", ".join(f"{value:.2f}" for value in values)
            + " times that of two draws of the teacher",
            values == sorted(values),
        )
