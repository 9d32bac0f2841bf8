"""Curricula: which phases train together, and how updates are split between them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

from pdmd.arguments import checked
from pdmd.distillation.phases import Phase, PhasePlan

__all__ = ["Joint", "Curriculum", "Progressive", "split_updates"]


class Curriculum(ABC):
    """Which phases train together, and whether they share a network.

    Attributes:
        shared: Whether the phases of a group share one network.
    """

    shared: bool = False

    @abstractmethod
    def groups(self, plan: PhasePlan) -> list[tuple[Phase, ...]]:
        """Returns groups of consecutive phases, in the order in which they train."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Progressive(Curriculum):
    """One phase after the other, from noise to data, with earlier ones frozen, as in the paper."""

    def groups(self, plan: PhasePlan) -> list[tuple[Phase, ...]]:
        return [(phase,) for phase in plan]


@checked
class Joint(Curriculum):
    """All phases at once: every cycle samples one. A baseline for ablations.

    Args:
        shared: Whether one network serves all phases.
    """

    def __init__(self, *, shared: bool = False) -> None:
        self.shared = shared

    def groups(self, plan: PhasePlan) -> list[tuple[Phase, ...]]:
        return [tuple(plan)]

    def __repr__(self) -> str:
        return f"Joint(shared={self.shared})"


def split_updates(total: int, weights: Sequence[float]) -> list[int]:
    """Splits updates between phases in proportion to weights.

    Args:
        total: Total number of updates.
        weights: The weight of each phase; only ratios matter.

    Returns:
        The number of updates of each phase, at least 1. They sum to ``total`` unless a phase was
        raised to 1.

    Raises:
        ValueError: If a weight is not positive and finite.
    """
    for weight in weights:
        if not (weight > 0 and math.isfinite(weight)):
            raise ValueError(f"the weight of a phase must be positive and finite, got {weight}")
    ends = [round(total * sum(weights[: i + 1]) / sum(weights)) for i in range(len(weights))]
    return [max(b - a, 1) for a, b in zip([0, *ends], ends, strict=False)]
