"""Intervals between checkpoints, in updates, in minutes, or both."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Interval"]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """When a checkpoint is due within a phase; one is always written at a phase's end.

    A checkpoint of a large network takes minutes to write, and so does an update: an interval in
    minutes bounds the work that a failure loses, whatever the network's size.

    Attributes:
        updates: Updates of the expert between checkpoints; 0 for no such rule.
        minutes: Minutes since the last checkpoint was written; 0 for no such rule.

    Raises:
        ValueError: If a number is negative or not finite.
    """

    updates: int = 0
    minutes: float = 0.0

    def __post_init__(self) -> None:
        if self.updates < 0:
            raise ValueError(
                "updates between checkpoints must be at least 1, or 0 for none, got "
                f"{self.updates}"
            )
        if not (self.minutes >= 0 and math.isfinite(self.minutes)):
            raise ValueError(
                f"minutes between checkpoints must be positive, or 0 for none, got {self.minutes}"
            )

    def due(self, update: int, seconds: float) -> bool:
        """Returns whether a checkpoint is due.

        Args:
            update: Updates of the phase so far.
            seconds: Seconds since the last checkpoint, or since training started.
        """
        if update == 0:  # the phase's start is the end of the one before
            return False
        by_updates = self.updates > 0 and update % self.updates == 0
        return by_updates or (self.minutes > 0 and seconds >= 60 * self.minutes)
