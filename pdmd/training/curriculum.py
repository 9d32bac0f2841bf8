"""Orders: which phases train together, and how updates are shared out over them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

from pdmd.distillation.phases import Phase, PhasePlan

__all__ = ["Joint", "Curriculum", "Progressive", "split_updates"]


class Curriculum(ABC):
    """Which phases train together, and whether they share a network."""

    shared: bool = False

    @abstractmethod
    def groups(self, plan: PhasePlan) -> list[tuple[Phase, ...]]:
        """Returns adjoining phases that train together, in the order of their training."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Progressive(Curriculum):
    """One phase after the other, from noise to data; those before are frozen. The paper's."""

    def groups(self, plan: PhasePlan) -> list[tuple[Phase, ...]]:
        return [(phase,) for phase in plan]


class Joint(Curriculum):
    """All phases at once: every cycle draws one. A control.

    Args:
        shared: Whether one network serves all phases.
    """

    def __init__(self, *, shared: bool = False) -> None:
        self.shared = shared

    def groups(self, plan: PhasePlan) -> list[tuple[Phase, ...]]:
        return [tuple(plan)]

    def __repr__(self) -> str:
        return f"Joint(shared={self.shared})"


def split_updates(total: int, share: Sequence[float]) -> list[int]:
    """Shares updates out over phases.

    Args:
        total: Updates in all.
        share: The weight of each phase; only their ratios count.

    Returns:
        Updates of each phase, at least 1, that add up to ``total`` where that suffices.

    Raises:
        ValueError: If a weight is not positive and finite.
    """
    for weight in share:
        if not (weight > 0 and math.isfinite(weight)):
            raise ValueError(f"the share of a phase is positive, got {weight}")
    ends = [round(total * sum(share[: i + 1]) / sum(share)) for i in range(len(share))]
    return [max(b - a, 1) for a, b in zip([0, *ends], ends, strict=False)]
