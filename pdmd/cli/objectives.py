"""The command `pdmd objectives`."""

from __future__ import annotations

from pdmd.cli.arguments import no_more

__all__ = ["objectives_command"]


def objectives_command(words: list[str]) -> int:
    """Lists the registered objectives and weightings.

    Args:
        words: The words after the command's name.

    Returns:
        The exit code.
    """
    from pdmd.objectives import score_difference_weightings
    from pdmd.objectives.base import objectives
    from pdmd.objectives.weightings import weightings

    if {"-h", "--help"} & set(words):
        print("usage: pdmd objectives\n\nLists the registered objectives and their weights.")
        return 0
    no_more(words)
    for title, registry in (
        ("objectives", objectives),
        ("distribution-matching weights (--objective.weight)", score_difference_weightings),
        ("score-matching weightings (--objective.weighting)", weightings),
    ):
        print(title)
        for name in registry:
            summary = (registry[name].__doc__ or "").strip().splitlines()[0]
            print(f"  {name:<24} {summary}")
    return 0
