r"""Fake scores: how many there are, which one serves a rollout, and how often they train.

A rollout that stops at step :math:`j` has a law of its own. One fake score shared by all stops
learns the score of their mixture, and so constrains the mixture alone; one for each stop
constrains every law.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor

from pdmd.phases import Phase

__all__ = ["FakeScores", "FakeUpdates", "FixedUpdates", "OneFakeScore", "OneFakeScorePerStop"]


class FakeScores(ABC):
    """Assigns a phase's rollouts to its fake scores."""

    @abstractmethod
    def number(self, phase: Phase) -> int:
        """Returns how many fake scores a phase has."""

    @abstractmethod
    def index(self, stop: int | None) -> int:
        """Returns which of them serves a rollout that stopped at ``stop``."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class OneFakeScore(FakeScores):
    """One fake score for a phase, whatever the stop: the paper's."""

    def number(self, phase: Phase) -> int:
        return 1

    def index(self, stop: int | None) -> int:
        return 0


class OneFakeScorePerStop(FakeScores):
    """A fake score for every step at which a rollout may stop."""

    def number(self, phase: Phase) -> int:
        return phase.steps

    def index(self, stop: int | None) -> int:
        return 0 if stop is None else stop


class FakeUpdates(ABC):
    """Decides how often the fake score trains before each update of the generator."""

    @abstractmethod
    def more(self, done: int) -> bool:
        """Says whether to train the fake score again, after ``done`` times in this cycle."""

    def observe(self, losses: Mapping[str, Tensor]) -> None:
        """Hears the scalars of a fake update."""
        return

    def begin(self) -> None:
        """Hears that a phase begins."""
        return

    def state(self) -> dict[str, float]:
        """Returns what a checkpoint keeps."""
        return {}

    def restore(self, state: Mapping[str, float]) -> None:
        """Takes what :meth:`state` returned."""
        return


class FixedUpdates(FakeUpdates):
    """A fixed number of fake updates per generator update (TTUR); 5 in the paper.

    Args:
        number: How many, at least 0.

    Raises:
        ValueError: If it is negative.
    """

    def __init__(self, number: int) -> None:
        if number < 0:
            raise ValueError(f"fake updates must be at least 0, got {number}")
        self.number = int(number)

    def more(self, done: int) -> bool:
        return done < self.number

    def __repr__(self) -> str:
        return f"FixedUpdates({self.number})"
