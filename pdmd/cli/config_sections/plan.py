"""The section ``[plan]``: phases and their timesteps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pdmd.diffusion.schedules import RectifiedFlow, Schedule
from pdmd.distillation.phases import Disjoint, Nested, PhasePlan

__all__ = ["PlanConfig"]


@dataclass(kw_only=True)
class PlanConfig:
    """The phase plan: how the noise range is divided."""

    phases: int = 4
    """Number of phases."""
    steps: tuple[int, ...] = (1,)
    """Steps in each phase: one number for all, or one per phase."""
    timesteps: tuple[float, ...] = ()
    """Times from 1 to 0, instead of equal steps; 'phases' is then ignored. On schedules whose
    noise is not bounded, steps are equal shares of noise rather than of time."""
    shift: float = 1.0
    """Above 1, more of the plan lies near noise."""
    score_range: Literal["nested", "disjoint"] = "nested"
    """Where scores are compared: (t_k, 1) as in the paper, or (t_k, t_{k-1})."""

    def build(self, schedule: Schedule | None = None) -> PhasePlan:
        """Builds the plan.

        Args:
            schedule: The teacher's, on which equal steps are placed (:meth:`PhasePlan.on`); by
                default a bounded one.

        Raises:
            ValueError: If the steps or timesteps do not form a plan.
        """
        score_range = {"nested": Nested(), "disjoint": Disjoint()}[self.score_range]
        if not self.steps:
            raise ValueError("plan.steps is empty; give one number, or one per phase")
        steps = self.steps[0] if len(self.steps) == 1 else self.steps
        if self.timesteps:
            return PhasePlan.from_timesteps(
                self.timesteps, steps=steps, shift=self.shift, score_range=score_range
            )
        return PhasePlan.on(
            schedule or RectifiedFlow(),
            self.phases,
            steps=steps,
            shift=self.shift,
            score_range=score_range,
        )
