r"""Fake scores: how many a phase has, which one a rollout trains, and how often they train.

Rollouts with exit step :math:`j` have their own distribution :math:`p^j`. One fake score for all
exit steps learns the score of the mixture :math:`\sum_j w_j p^j`, and so constrains the mixture
alone; one per exit step constrains every :math:`p^j`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, cast

from torch import Tensor

from pdmd.arguments import checked
from pdmd.distillation.phases import Phase, PhasePlan
from pdmd.training.curriculum import Curriculum
from pdmd.training.learning_rates import Constant
from pdmd.training.optimizers import AdamRecipe
from pdmd.training.phase_settings import check_settings, setting_of

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
"""Computes an objective's measurements by name."""


class FakeScores(ABC):
    """Assigns a phase's rollouts to its fake scores."""

    @abstractmethod
    def number(self, phase: Phase) -> int:
        """Returns how many fake scores a phase has."""

    @abstractmethod
    def index(self, exit_step: int | None) -> int:
        """Returns the index of the fake score for rollouts with this exit step."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class OneFakeScore(FakeScores):
    """One fake score per phase, for every exit step, as in the paper."""

    def number(self, phase: Phase) -> int:
        return 1

    def index(self, exit_step: int | None) -> int:
        return 0


class OneFakeScorePerExitStep(FakeScores):
    """One fake score per exit step."""

    def number(self, phase: Phase) -> int:
        return phase.steps

    def index(self, exit_step: int | None) -> int:
        return 0 if exit_step is None else exit_step


class FakeUpdates(ABC):
    """Decides how often the fake score trains before each update of the generator."""

    @abstractmethod
    def more(self, done: int) -> bool:
        """Returns whether to train the fake score again, after ``done`` updates in this cycle."""

    def observe(self, measure: Measure) -> None:
        """Called after a fake update; ``measure()`` returns its objective's measurements."""
        return

    def on_phase_start(self) -> None:
        """Called when a phase starts."""
        return

    def state(self) -> dict[str, float]:
        """Returns the state for a checkpoint."""
        return {}

    def restore(self, state: Mapping[str, float]) -> None:
        """Restores what :meth:`state` returned."""
        return


class FixedUpdates(FakeUpdates):
    """A fixed number of fake updates per generator update (TTUR); 5 in the paper.

    Args:
        number: Fake updates per generator update.

    Raises:
        ValueError: If ``number`` is negative.
    """

    def __init__(self, number: int) -> None:
        if number < 0:
            raise ValueError(f"fake updates must be at least 0, got {number}")
        self.number = int(number)

    def more(self, done: int) -> bool:
        return done < self.number

    def __repr__(self) -> str:
        return f"FixedUpdates({self.number})"


@checked
class AdaptiveUpdates(FakeUpdates):
    r"""Trains the fake score until its relative error is below a tolerance.

    The relative error (:func:`~pdmd.objectives.score_matching.relative_score_error`) is averaged
    over updates, in bins of time; the fake score trains again while the root mean square of the
    bins exceeds the tolerance. The error of one batch is noisy, hence the average; a score may be
    underestimated at some times and overestimated at others, hence the bins.

    Args:
        tolerance: Largest acceptable relative error.
        least: Minimum number of fake updates per cycle.
        most: Maximum number of fake updates per cycle.
        decay: Decay of the moving average.

    Raises:
        ValueError: If the tolerance is not positive, the decay is not in [0, 1), or ``least``
            exceeds ``most``.
    """

    def __init__(
        self, tolerance: float = 0.05, *, least: int = 1, most: int = 5, decay: float = 0.9
    ) -> None:
        if not tolerance > 0:
            raise ValueError(f"tolerance must be positive, got {tolerance}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        if not 0 <= least <= most:
            raise ValueError(f"expected 0 <= least <= most, got {least} and {most}")
        self.tolerance, self.decay = float(tolerance), float(decay)
        self.least, self.most = least, most
        self.on_phase_start()

    def on_phase_start(self) -> None:
        self._average: list[float] = []
        self._updates = 0

    @property
    def relative_error(self) -> float:
        """Root mean square of the averaged error over bins; infinite before the first update."""
        if not self._updates:
            return math.inf
        correction = 1 - self.decay**self._updates
        values = [value / correction for value in self._average]
        return math.sqrt(sum(v * v for v in values) / len(values))

    def more(self, done: int) -> bool:
        return done < self.least or (done < self.most and self.relative_error > self.tolerance)

    def observe(self, measure: Measure) -> None:
        diagnostics = measure()
        if "relative_error" not in diagnostics:
            raise ValueError(
                "AdaptiveUpdates requires a fake objective whose diagnostics have "
                "relative_error; use SubintervalScoreMatching"
            )
        values = diagnostics["relative_error"].tolist()
        if not self._updates:
            self._average = [0.0] * len(values)
        self._updates += 1
        self._average = [
            self.decay * old + (1 - self.decay) * new
            for old, new in zip(self._average, values, strict=True)
        ]

    def state(self) -> dict[str, float]:
        bins = {f"bin_{i}": value for i, value in enumerate(self._average)}
        return {"seen": self._updates, **bins}

    def restore(self, state: Mapping[str, float]) -> None:
        self._updates = int(state["seen"])
        self._average = [state[f"bin_{i}"] for i in range(len(state) - 1)]

    def __repr__(self) -> str:
        return (
            f"AdaptiveUpdates({self.tolerance}, least={self.least}, most={self.most}, "
            f"decay={self.decay})"
        )


@checked
@dataclass(frozen=True, kw_only=True)
class FakeScoreTraining:
    """How the fake scores train.

    Attributes:
        updates: Fake updates per update of the expert (TTUR): a number, or a
            :class:`FakeUpdates` that decides; or one of them per phase.
        updates_per_rollout: Fake updates that reuse one rollout, each with new times and noise;
            above 1, the first of them reuse the rollout of the expert's update. Saves network
            evaluations, at the cost of less varied samples.
        accumulate: Rollouts per fake update, over which gradients are accumulated: the update of
            one rollout with as many times the samples, in the memory of one.
        scores: How many fake scores a phase has, and which one a rollout trains.
        optimizer: The optimizer of the fake scores, one for all phases or one per phase; by
            default the expert's, with twice the learning rate, constant.
        max_grad_norm: Norm to which gradients are clipped.

    Raises:
        ValueError: If a number is out of its range.
    """

    updates: int | FakeUpdates | Sequence[int | FakeUpdates] = 5
    updates_per_rollout: int = 1
    accumulate: int = 1
    scores: FakeScores = field(default_factory=OneFakeScore)
    optimizer: AdamRecipe | Sequence[AdamRecipe] | None = None
    max_grad_norm: float = 10.0

    def __post_init__(self) -> None:
        per_phase = isinstance(self.updates, list | tuple)
        rules = self.updates if per_phase else (self.updates,)
        for rule in cast("Sequence[int | FakeUpdates]", rules):
            _rule(rule)
        if self.updates_per_rollout < 1:
            raise ValueError(
                f"updates_per_rollout must be at least 1, got {self.updates_per_rollout}"
            )
        if self.accumulate < 1:
            raise ValueError(f"accumulate must be at least 1, got {self.accumulate}")
        if not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be positive, got {self.max_grad_norm}")

    def check(self, plan: PhasePlan, curriculum: Curriculum) -> None:
        """Checks that settings per phase fit a plan and a curriculum.

        Args:
            plan: The phases.
            curriculum: Which of them train together.

        Raises:
            ValueError: If one has another number of values than the plan has phases, or differs
                between phases that train together.
        """
        check_settings(self.updates, plan, "the number of fake updates")
        check_settings(self.optimizer, plan, "the fake scores' optimizer")
        for group in curriculum.groups(plan):
            self.schedule(group)
            setting_of(self.optimizer, group, "the fake scores' optimizer")

    def schedule(self, phases: Sequence[Phase]) -> FakeUpdates:
        """Returns the rule for the number of fake updates in phases that train together.

        Raises:
            ValueError: If they have different ones.
        """
        return _rule(setting_of(self.updates, phases, "the number of fake updates"))

    def recipe(self, experts: AdamRecipe, phases: Sequence[Phase]) -> AdamRecipe:
        """Returns the optimizer recipe in phases that train together.

        Args:
            experts: That of the experts of these phases.
            phases: The phases.

        Raises:
            ValueError: If the phases have different ones.
        """
        own = setting_of(self.optimizer, phases, "the fake scores' optimizer")
        return own or AdamRecipe(lr=2 * experts.lr, decay=Constant(), bits=experts.bits)


def _rule(updates: int | FakeUpdates) -> FakeUpdates:
    return FixedUpdates(updates) if isinstance(updates, int) else updates
