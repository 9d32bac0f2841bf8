"""The command `pdmd objectives`."""

from __future__ import annotations

from pdmd.cli.arguments import no_more

__all__ = ["objectives_command"]


def objectives_command(words: list[str]) -> int:
    from pdmd.objectives import gap_weights, weightings
    from pdmd.objectives.base import objectives

    if {"-h", "--help"} & set(words):
        print("usage: pdmd objectives\n\nLists the registered objectives and their weights.")
        return 0
    no_more(words)
    for title, registry in (
        ("objectives", objectives),
        ("distribution-matching weights (--objective.weight)", gap_weights),
        ("score-matching weightings (--objective.weighting)", weightings),
    ):
        print(title)
        for name in registry:
            summary = (registry[name].__doc__ or "").strip().splitlines()[0]
            print(f"  {name:<24} {summary}")
    return 0
