"""Outputs: what a run writes beside its checkpoints and its student, and may do without.

A full disk, a removed folder or a closed terminal ends no training: an output that fails is
reported once, and tried again when it is next due.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

__all__ = ["Outputs", "say"]


def say(text: str) -> None:
    """Writes a line to the standard error stream, if it can be written to."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):  # closed
        return


class Outputs:
    """Writes outputs, and reports those that fail once.

    Args:
        report: Called with a warning.
    """

    def __init__(self, report: Callable[[str], None] = say) -> None:
        self.report = report
        self.failed: set[str] = set()

    def attempt(self, name: str, act: Callable[[], None]) -> bool:
        """Writes an output.

        Args:
            name: The output, as the warning names it.
            act: Writes it.

        Returns:
            Whether it was written.
        """
        try:
            act()
        except Exception as error:  # trackers and terminals raise any class
            if name not in self.failed:
                self.failed.add(name)
                why = " ".join(str(error).split())[:200] or type(error).__name__
                self.report(
                    f"pdmd: warning: {name} could not be written ({why}); training goes on, and "
                    "this is not reported again"
                )
            return False
        return True
