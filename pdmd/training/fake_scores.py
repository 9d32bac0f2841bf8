r"""Fake scores: how many there are, which one serves a rollout, and how often they train.

A rollout that stops at step :math:`j` has a law of its own. One fake score shared by all stops
learns the score of their mixture, and so constrains the mixture alone; one for each stop
constrains every law.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor

from pdmd.distillation.phases import Phase
from pdmd.training.optimizers import AdamRecipe

__all__ = [
    "AdaptiveUpdates",
    "FakeScoreTraining",
    "FakeScores",
    "FakeUpdates",
    "FixedUpdates",
    "OneFakeScore",
    "OneFakeScorePerExitStep",
]


Measure: TypeAlias = Callable[[], Mapping[str, Tensor]]
"""Returns figures by name, computed when called."""


class FakeScores(ABC):
    """Assigns a phase's rollouts to its fake scores."""

    @abstractmethod
    def number(self, phase: Phase) -> int:
        """Returns how many fake scores a phase has."""

    @abstractmethod
    def index(self, exit_step: int | None) -> int:
        """Returns which of them serves a rollout that stopped at ``exit_step``."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class OneFakeScore(FakeScores):
    """One fake score for a phase, whatever the stop: the paper's."""

    def number(self, phase: Phase) -> int:
        return 1

    def index(self, exit_step: int | None) -> int:
        return 0


class OneFakeScorePerExitStep(FakeScores):
    """A fake score for every step at which a rollout may stop."""

    def number(self, phase: Phase) -> int:
        return phase.steps

    def index(self, exit_step: int | None) -> int:
        return 0 if exit_step is None else exit_step


class FakeUpdates(ABC):
    """Decides how often the fake score trains before each update of the generator."""

    @abstractmethod
    def more(self, done: int) -> bool:
        """Says whether to train the fake score again, after ``done`` times in this cycle."""

    def observe(self, measure: Measure) -> None:
        """Hears of a fake update; ``measure()`` says what its objective measured."""
        return

    def on_phase_start(self) -> None:
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


class AdaptiveUpdates(FakeUpdates):
    r"""As many fake updates as the fake score's relative error asks for.

    The relative error (:func:`~pdmd.objectives.score_matching.relative_score_error`) is averaged
    over updates, in bins of time; the fake score trains again while the root mean square of the
    bins is above a tolerance. Averaging over updates is needed because the relative error of one
    batch is noisy; binning, because a score may be too timid at some times and too sure at others.

    Args:
        tolerance: The relative error to stay below.
        least: Fake updates in every cycle at the least.
        most: Fake updates in every cycle at the most.
        memory: Decay of the average.

    Raises:
        ValueError: If the tolerance is not positive, the memory not in [0, 1), or the numbers are
            not ordered.
    """

    def __init__(
        self, tolerance: float = 0.05, *, least: int = 1, most: int = 5, memory: float = 0.9
    ) -> None:
        if not tolerance > 0:
            raise ValueError(f"a tolerance of the relative error is positive, got {tolerance}")
        if not 0 <= memory < 1:
            raise ValueError(f"the memory of an average is in [0, 1), got {memory}")
        if not 0 <= least <= most:
            raise ValueError(f"expected 0 <= least <= most, got {least} and {most}")
        self.tolerance, self.memory = float(tolerance), float(memory)
        self.least, self.most = least, most
        self.on_phase_start()

    def on_phase_start(self) -> None:
        self._average: list[float] = []
        self._seen = 0

    @property
    def relative_error(self) -> float:
        """The root mean square of the averaged error; infinite before the first update."""
        if not self._seen:
            return math.inf
        correction = 1 - self.memory**self._seen
        values = [value / correction for value in self._average]
        return math.sqrt(sum(v * v for v in values) / len(values))

    def more(self, done: int) -> bool:
        return done < self.least or (done < self.most and self.relative_error > self.tolerance)

    def observe(self, measure: Measure) -> None:
        measures = measure()
        if "relative_error" not in measures:
            raise ValueError(
                "adaptive fake updates need a fake objective that measures its error, such as "
                "SubintervalScoreMatching"
            )
        values = measures["relative_error"].tolist()
        if not self._seen:
            self._average = [0.0] * len(values)
        self._seen += 1
        self._average = [
            self.memory * old + (1 - self.memory) * new
            for old, new in zip(self._average, values, strict=True)
        ]

    def state(self) -> dict[str, float]:
        bins = {f"bin_{i}": value for i, value in enumerate(self._average)}
        return {"seen": self._seen, **bins}

    def restore(self, state: Mapping[str, float]) -> None:
        self._seen = int(state["seen"])
        self._average = [state[f"bin_{i}"] for i in range(len(state) - 1)]

    def __repr__(self) -> str:
        return (
            f"AdaptiveUpdates({self.tolerance}, least={self.least}, most={self.most}, "
            f"memory={self.memory})"
        )


@dataclass(frozen=True, kw_only=True)
class FakeScoreTraining:
    """How the fake scores train.

    Attributes:
        updates: Updates of the fake score before each of the expert's (TTUR): their number, or
            what decides it.
        updates_per_rollout: Fake updates that share one rollout, with new times and noise; above
            1 the expert's own rollout serves the first of them. Fewer network evaluations,
            samples that are seen more often.
        scores: How many fake scores a phase has, and which one a rollout trains.
        optimizer: The optimizer of the fake scores; by default the expert's at twice its
            learning rate, constant.
        max_grad_norm: Largest norm of the gradient.

    Raises:
        ValueError: If a number is out of its range.
    """

    updates: int | FakeUpdates = 5
    updates_per_rollout: int = 1
    scores: FakeScores = field(default_factory=OneFakeScore)
    optimizer: AdamRecipe | None = None
    max_grad_norm: float = 10.0

    def __post_init__(self) -> None:
        self.schedule()
        if self.updates_per_rollout < 1:
            raise ValueError(
                f"updates_per_rollout must be at least 1, got {self.updates_per_rollout}"
            )
        if not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be positive, got {self.max_grad_norm}")

    def schedule(self) -> FakeUpdates:
        """Returns what decides the number of updates.

        Raises:
            ValueError: If a number is negative.
        """
        return FixedUpdates(self.updates) if isinstance(self.updates, int) else self.updates

    def recipe(self, experts: AdamRecipe) -> AdamRecipe:
        """Returns the optimizer, given the experts'."""
        return self.optimizer or AdamRecipe(lr=2 * experts.lr, decay_from=1.0)
