"""Orders: which phases train together."""

from __future__ import annotations

from abc import ABC, abstractmethod

from pdmd.phases import Phase, PhasePlan

__all__ = ["Joint", "Order", "Progressive"]


class Order(ABC):
    """Which phases train together, and whether they share a network."""

    shared: bool = False

    @abstractmethod
    def groups(self, plan: PhasePlan) -> list[tuple[Phase, ...]]:
        """Returns adjoining phases that train together, in the order of their training."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Progressive(Order):
    """One phase after the other, from noise to data; those before are frozen. The paper's."""

    def groups(self, plan: PhasePlan) -> list[tuple[Phase, ...]]:
        return [(phase,) for phase in plan]


class Joint(Order):
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
