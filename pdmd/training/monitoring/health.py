"""The health of updates: which were refused, why, and when to stop.

An update whose loss or gradient is not finite is never applied. A few in a row may pass (one bad
batch, one overflow); more mean that the run is lost, and it stops.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["Health", "NonFiniteError"]


class NonFiniteError(RuntimeError):
    """Losses or gradients were not finite; the updates were not applied."""


class Health:
    """Counts refused updates of each role.

    Args:
        max_consecutive_skips: Updates of a role that may be refused in a row before the run stops.

    Raises:
        ValueError: If it is negative.
    """

    def __init__(self, max_consecutive_skips: int = 3) -> None:
        if max_consecutive_skips < 0:
            raise ValueError(
                f"max_consecutive_skips must be at least 0, got {max_consecutive_skips}"
            )
        self.max_consecutive_skips = int(max_consecutive_skips)
        self.complaints: list[str] = []
        self._in_a_row: dict[str, int] = {}

    def applied(self, role: str) -> None:
        """Hears that a role's update was applied."""
        self._in_a_row[role] = 0

    def skipped(self, role: str, complaint: str) -> None:
        """Hears that a role's update was refused.

        Raises:
            NonFiniteError: If too many were, one after the other.
        """
        count = self._in_a_row[role] = self._in_a_row.get(role, 0) + 1
        self.complaints.append(complaint)
        if count > self.max_consecutive_skips:
            again = f" {count} updates of the {role} in a row were refused." if count > 1 else ""
            raise NonFiniteError(complaint + again)

    def state(self) -> dict[str, int]:
        """Returns what a checkpoint keeps."""
        return dict(self._in_a_row)

    def restore(self, state: Mapping[str, int]) -> None:
        """Takes what :meth:`state` returned."""
        self._in_a_row = dict(state)

    def drain(self) -> list[str]:
        """Returns the complaints since it was last asked."""
        heard, self.complaints = self.complaints, []
        return heard
