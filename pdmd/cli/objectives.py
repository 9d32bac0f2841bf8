"""The command `pdmd objectives`."""

from __future__ import annotations

import re

from pdmd.cli.arguments import no_more

__all__ = ["objectives_command"]

USAGE = """\
usage: pdmd objectives

Lists the registered objectives and the objects that are their arguments, with the keys that each
takes in a configuration. A term of [[objective.generator]] or [[objective.fake]] also has a weight
and phases, counted from 1.
"""


def objectives_command(words: list[str]) -> int:
    """Lists the registered objectives, weightings and other arguments of theirs.

    Args:
        words: The words after the command's name.

    Returns:
        The exit code.
    """
    from pdmd.cli.composition import FAMILIES, keys_of
    from pdmd.objectives.base import Objective

    if {"-h", "--help"} & set(words):
        print(USAGE, end="")
        return 0
    no_more(words)
    for family, registry in FAMILIES.items():
        print(f"{registry.noun} ({family.__name__})")
        for name in registry:
            keys = keys_of(registry[name], ("weight",) if family is Objective else ())
            summary = (registry[name].__doc__ or "").strip().splitlines()[0]
            print(f"  {name}({', '.join(keys)})")
            print(f"      {re.sub(':math:|`', '', summary)}")
    return 0
