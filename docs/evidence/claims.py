"""The claims of the evidence page: for each, the figures and whether they support it."""

from guided_claims import guided_claims

from pdmd.benchmarks import SCHEMES
from pdmd.evaluation.bench_report import summarise

__all__ = ["CLAIMS", "NAMES"]

BEST = "phased_tuned"
NAMES = {
    "trajectory_rmse": "trajectory RMSE",
    "log_likelihood_gap": "log-likelihood",
    "feature_distance": "fidT",
    "feature_distance_real": "fidR",
}
"""Column titles of metrics."""
EFFICIENCY_SETTINGS = {  # method: its setting, and the method without it
    "phased_buffer": ("A phase-input buffer", "phased"),
    "phased_buffer_4": ("A buffer whose phase inputs are used four times", "phased"),
    "phased_fast_fake": (
        "One fake update at the rate of all that it replaces, a buffer used four times, and 27% "
        "more generator updates",
        "phased",
    ),
    "phased_reuse_2": ("One rollout for two fake updates", "phased"),
    "phased_reuse": ("One rollout for all updates of a cycle", "phased"),
    "phased_buffer_reuse": ("A buffer, and one rollout for all updates", "phased"),
    "phased_adaptive": ("Adaptive fake updates, and 1.36 times the generator updates", "phased"),
    "phased_buffer_adaptive": ("Adaptive fake updates with a buffer", "phased_buffer"),
    "phased_buffer_reuse_adaptive": (
        "Adaptive fake updates with a buffer and one rollout",
        "phased_buffer_reuse",
    ),
}
PUBLISHED = {  # method: (klh, sw2) in the first small study
    "one_step": (0.101, 0.142),
    "vanilla": (0.035, 0.095),
    "vanilla_experts": (0.037, 0.079),
    "sgts": (0.052, 0.126),
    "sgts_per_exit_step": (0.032, 0.101),
    "phased": (0.026, 0.108),
    "phased_2x2": (0.031, 0.104),
    "phased_disjoint": (0.239, 0.231),
}


class Claims:
    def __init__(self):
        self.lines = []

    def add(self, text, holds, figures):
        self.lines.append(f"| {text} | {figures} | {'**yes**' if holds else '**no**'} |")

    def render(self):
        return "\n".join(["| claim | figures | shows |", "| --- | --- | --- |", *self.lines])


def means(results):
    out = {}
    for e in summarise(results["rows"]):
        out[e["method"]] = {k: v for k, v in e.items() if isinstance(v, tuple)}
    return out


def toy_claims(results):
    m, claims = means(results), Claims()

    def get(name):
        return m[name]["trajectory_rmse"][0]

    for name in ("biased", "biased_rescaled"):
        ratio = get(name) / get("unbiased")
        claims.add(
            f"The trajectory error of the `{name}` target is at least 5 times that of the "
            "unbiased one",
            ratio >= 5,
            f"{ratio:.1f} times",
        )
    ratio = get("unbiased") / get("full")
    claims.add(
        "The error of the unbiased target is within a factor of 2 of full-interval training",
        ratio <= 2,
        f"{ratio:.2f} times",
    )
    return claims.render()


def ascending(m, name, names):
    return " < ".join(f"{m[n][name][0]:.3f}" for n in names)


def mixture_claims(results):
    m, claims = means(results), Claims()

    def v(method, name):
        return m[method][name][0]

    names = ("phased", "sgts", "one_step")
    claims.add(
        "Phased preserves the balance of modes better than SGTS, and SGTS better than one step "
        "(klh)",
        v("phased", "klh") < v("sgts", "klh") < v("one_step", "klh"),
        ascending(m, "klh", names),
    )
    ratio = v("phased_disjoint", "klh") / v("phased", "klh")
    claims.add(
        "The disjoint score range is at least 4 times worse than the nested one (klh)",
        ratio >= 4,
        f"{ratio:.1f} times",
    )
    claims.add(
        "Deterministic steps recover most of the balance that SGTS loses (klh), and a fake score "
        "per exit step brings it closer to the exact law (sw2)",
        v("sgts_ode", "klh") < 0.7 * v("sgts", "klh")
        and v("sgts_per_exit_step", "sw2") < v("sgts_ode", "sw2"),
        f"renoising {v('sgts', 'klh'):.3f} / {v('sgts', 'sw2'):.3f}; deterministic "
        f"{v('sgts_ode', 'klh'):.3f} / {v('sgts_ode', 'sw2'):.3f}; and a score per exit step "
        f"{v('sgts_per_exit_step', 'klh'):.3f} / {v('sgts_per_exit_step', 'sw2'):.3f}",
    )
    claims.add(
        "Phased beats the gradient through all steps (klh / sw2)",
        v("phased", "klh") < v("vanilla", "klh") and v("phased", "sw2") < v("vanilla", "sw2"),
        f"{v('phased', 'klh'):.3f} / {v('phased', 'sw2'):.3f} against {v('vanilla', 'klh'):.3f} / "
        f"{v('vanilla', 'sw2'):.3f}, at {v('phased', 'saved_mib'):.2f} against "
        f"{v('vanilla', 'saved_mib'):.2f} MiB",
    )
    claims.add(
        "The biased target costs balance and concentrates the samples too much (klh, "
        "log-likelihood)",
        v("phased_biased", "klh") > v("phased", "klh") + m["phased"]["klh"][1]
        and v("phased_biased", "log_likelihood_gap") > v("phased", "log_likelihood_gap"),
        f"klh {v('phased_biased', 'klh'):.3f} against {v('phased', 'klh'):.3f}, log-likelihood "
        f"{v('phased_biased', 'log_likelihood_gap'):.1f} against "
        f"{v('phased', 'log_likelihood_gap'):.1f}; sw2 {v('phased_biased', 'sw2'):.3f} against "
        f"{v('phased', 'sw2'):.3f}",
    )
    claims.add(
        "One expert per phase beats one network for all phases (sw2)",
        v("phased", "sw2") < v("phased_shared", "sw2"),
        f"{v('phased', 'sw2'):.3f} against {v('phased_shared', 'sw2'):.3f}",
    )
    claims.add(
        "One rollout for the generator update and its five fake updates gives equal quality (klh)",
        v("phased_reuse", "klh") <= v("phased", "klh") + m["phased"]["klh"][1],
        f"{v('phased_reuse', 'klh'):.3f} against {v('phased', 'klh'):.3f}, at "
        f"{v('phased_reuse', 'forwards') / v('phased', 'forwards'):.2f} of the forwards",
    )
    share = v("phased_adaptive", "forwards") / v("phased", "forwards")
    near = all(
        v("phased_adaptive", k) - v("phased", k)
        <= max(m["phased"][k][1], m["phased_adaptive"][k][1])
        for k in ("klh", "sw2")
    )
    claims.add(
        "Adaptive fake updates reach the quality of 5 to 1, within a standard deviation, at half "
        "the evaluations or less",
        near and share <= 0.5,
        f"klh {v('phased_adaptive', 'klh'):.4f} against {v('phased', 'klh'):.4f}, sw2 "
        f"{v('phased_adaptive', 'sw2'):.4f} against {v('phased', 'sw2'):.4f}, at {share:.2f} of "
        "the forwards",
    )
    if BEST in m:
        klh, sw2 = v(BEST, "klh"), v(BEST, "sw2")
        beaten = [n for n, (a, b) in PUBLISHED.items() if klh < a and sw2 < b]
        missed = [n for n in PUBLISHED if n not in beaten]
        claims.add(
            f"`{BEST}` beats every method of the first small study in klh and sw2, at the same "
            "number of generator updates and the memory of `phased`",
            not missed,
            f"klh {klh:.3f}, sw2 {sw2:.3f}, {v(BEST, 'saved_mib'):.2f} MiB; "
            + (f"not beaten: {', '.join(missed)}" if missed else "all beaten"),
        )
        own = [n for n in m if n in SCHEMES and n != BEST]
        better = [n for n in own if v(n, "klh") <= klh or v(n, "sw2") <= sw2]
        claims.add(
            f"`{BEST}` beats every method of this table in klh and sw2",
            not better,
            f"not beaten: {', '.join(better)}" if better else "all beaten",
        )
    return claims.render()


def digits_claims(results):
    m, claims = means(results), Claims()

    def v(method, name):
        return m[method][name][0]

    for name in ("sgts", "phased_disjoint", "teacher_euler_4"):
        claims.add(
            f"Phased beats `{name}` (feature distance)",
            v("phased", "feature_distance") < v(name, "feature_distance"),
            f"{v('phased', 'feature_distance'):.3f} against {v(name, 'feature_distance'):.3f}",
        )
    for name in ("vanilla", "one_step"):
        if name in m:
            claims.add(
                f"Phased beats `{name}` (feature distance)",
                v("phased", "feature_distance") < v(name, "feature_distance"),
                f"{v('phased', 'feature_distance'):.3f} against {v(name, 'feature_distance'):.3f}",
            )
    floor, spread = m["teacher"]["feature_distance"]

    def reaches(name):
        own = m[name]
        return (
            own["feature_distance"][0] <= floor + max(spread, 0.1 * floor)
            and own["coverage"][0] >= 0.99 * m["teacher"]["coverage"][0]
            and own["cosine"][0] <= m["teacher"]["cosine"][0] + 0.002
        )

    students = [n for n in m if n in SCHEMES]
    claims.add(
        "Phased reaches an independent sample of the teacher (feature distance, coverage, "
        "same-class cosine)",
        reaches("phased"),
        f"{v('phased', 'feature_distance'):.3f} against {floor:.3f}; coverage "
        f"{v('phased', 'coverage'):.3f} against {v('teacher', 'coverage'):.3f}, cosine "
        f"{v('phased', 'cosine'):.3f} against {v('teacher', 'cosine'):.3f}",
    )
    found = [n for n in students if reaches(n)]
    claims.add(
        "Some student of the table reaches an independent sample of the teacher in all three",
        bool(found),
        ", ".join(f"`{n}` ({v(n, 'feature_distance'):.3f})" for n in found) or "none",
    )
    return claims.render()


def efficiency_claims(results):
    """Compares every efficiency setting with the method without it, by the latter's deviation."""
    m, claims = means(results), Claims()
    rising = ("coverage", "vendi")
    metrics = ("klh", "sw2", "feature_distance", *rising)
    figures = [k for k in metrics if k in m["phased"]]
    for name, (words, without) in EFFICIENCY_SETTINGS.items():
        if name not in m:
            continue
        parts, holds = [], True
        without = without if without in m else "phased"
        for key in figures:
            own, (base, spread) = m[name][key][0], m[without][key]
            worse = (base - own if key in rising else own - base) / spread
            holds &= worse <= 1
            parts.append(f"{NAMES.get(key, key)} {own:.4f} against {base:.4f} ({worse:+.1f} sd)")
        share = m[name]["forwards"][0] / m[without]["forwards"][0]
        claims.add(
            f"{words}: `{name}` is not worse than `{without}` by a standard deviation",
            holds,
            f"{'; '.join(parts)}; at {share:.2f} of the forwards",
        )
    return claims.render()


def overhead_claims(results):
    m, claims = means(results), Claims()
    ratio = m["transformer_medium"]["ratio"][0]
    claims.add(
        "A cycle of the trainer costs at most 3% more than one of a hand-written loop, on the "
        "medium transformer",
        ratio <= 1.03,
        f"{ratio:.3f} times",
    )
    return claims.render()


def speed_claims(results):
    m, claims = means(results), Claims()

    def medium(name):
        return m[f"transformer_medium/{name}"]

    def spread(name):
        v = medium(name)
        return f"{v['speed'][0]:.2f} times ({v['speed_low'][0]:.2f} to {v['speed_high'][0]:.2f})"

    def certain(name):
        v = medium(name)
        low, high = v["median_low"][0], v["median_high"][0]
        return f"{v['speed'][0]:.3f} times ({low:.3f} to {high:.3f} at 95%)"

    for name, least, words in (
        ("buffer_reuse", 1.6, "a phase-input buffer and rollout reuse"),
        ("buffer_reuse_adaptive", 2.5, "these and adaptive updates"),
    ):
        claims.add(
            f"The medium transformer trains at least {least} times as fast with {words} as with "
            "a full rollout for every fake update",
            medium(name)["speed"][0] >= least,
            f"{spread(name)}, {medium(name)['fake_updates'][0]:.2f} fake updates per cycle",
        )
    claims.add(
        "The hand-written loop is at most 3% faster at equal work, on the medium transformer",
        medium("bare")["median_high"][0] <= 1.03,
        certain("bare"),
    )
    if "transformer_medium/modelopt" in m:
        peer = medium("modelopt")
        claims.add(
            "At equal work `modelopt.torch.fastgen` is no faster and needs no less memory, on the "
            "medium transformer",
            peer["speed"][0] <= 1 and peer["memory"][0] >= 1,
            f"{certain('modelopt')}, {peer['memory'][0]:.3f} of the memory",
        )
    return claims.render()


def memory_claims(results):
    claims = Claims()
    for run in dict.fromkeys(row["method"].split()[0] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["method"].split()[0] == run]
        worst = max(rows, key=lambda row: row["peak_mib"] / row["bound_mib"])
        mode, ranks = run.split("_")
        claims.add(
            f"{'Full weights' if mode == 'full' else 'Adapters'} on {ranks} ranks: at no moment "
            "does a rank hold more than its share of all that is kept, two units and 300 MiB",
            worst["peak_mib"] <= worst["bound_mib"],
            f"at most {worst['peak_mib'] / worst['bound_mib']:.2f} of the bound, in "
            f"`{worst['method']}`: {worst['peak_mib']:,.0f} of {worst['bound_mib']:,.0f} MiB",
        )
    return claims.render()


CLAIMS = {
    "toy1d": toy_claims,
    "mixture": mixture_claims,
    "digits": digits_claims,
    **dict.fromkeys(("glyphs", "fashion", "clips"), guided_claims),
    "efficiency_mixture": efficiency_claims,
    "efficiency_digits": efficiency_claims,
    "efficiency_glyphs": efficiency_claims,
    "overhead": overhead_claims,
    "memory": memory_claims,
    "speed": speed_claims,
}
"""The claims of each results file, as a function of the results."""
