"""Where the error of students comes from: the fake score, and the capacity of the experts."""

__all__ = ["capacity_table", "fake_score_table"]

DISTANCE = "feature_distance"
CONTROLS = ("phased", "phased_shared", "phased_lora", "vanilla", "vanilla_experts")
"""Schemes that differ in the number of trained parameters."""


def fake_score_table(pairs):
    """Returns the table of distances with few and with many fake updates.

    Args:
        pairs: By benchmark, its results with few and with many fake updates, otherwise of the same
            options, and the distance between two draws of the teacher.
    """
    lines = [
        "| benchmark | method | n | fidT, 2 fake updates | 8 fake updates | floor | "
        "share of the fake score |",
        "|" + " --- |" * 7,
    ]
    for name, (few, many, floor) in pairs.items():
        before, after = _distances(few), _distances(many)
        for method, found in after.items():
            seeds = [seed for seed in found if seed in before.get(method, {})]
            if seeds and not method.startswith("teacher"):
                own, better = _mean(before[method], seeds), _mean(found, seeds)
                share = (own - better) / (own - floor)
                lines.append(
                    f"| {name} | `{method}` | {len(seeds)} | {own:.1f} | {better:.1f} | "
                    f"{floor:.1f} | {share:.0%} |"
                )
    return "\n".join(lines)


def capacity_table(results):
    """Returns the table of distances of schemes that differ in capacity.

    Args:
        results: Results by benchmark; means are over the seeds that all of its schemes have.
    """
    lines = [
        "| benchmark | n | " + " | ".join(f"`{name}`" for name in CONTROLS) + " |",
        "|" + " --- |" * (2 + len(CONTROLS)),
    ]
    for name, own in results.items():
        found = _distances(own)
        present = [method for method in CONTROLS if method in found]
        if len(present) > 2:
            seeds = sorted(set.intersection(*({*found[method]} for method in present)))
            means = {method: f"{_mean(found[method], seeds):.1f}" for method in present}
            cells = " | ".join(means.get(method, "") for method in CONTROLS)
            lines.append(f"| {name} | {len(seeds)} | {cells} |")
    return "\n".join(lines)


def _distances(results):
    found = {}
    for row in results["rows"]:
        found.setdefault(row["method"], {})[row["seed"]] = row[DISTANCE]
    return found


def _mean(distances, seeds):
    return sum(distances[seed] for seed in seeds) / len(seeds)
