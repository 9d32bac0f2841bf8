"""Expert training: initialization, optimizer and weight average of the experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pdmd.arguments import checked
from pdmd.distillation.experts import Expert, OdeExpert
from pdmd.distillation.initializers import FromTeacher, Initializer
from pdmd.distillation.phases import Phase, PhasePlan
from pdmd.training.curriculum import Curriculum, Progressive
from pdmd.training.optimizers import AdamRecipe
from pdmd.training.phase_settings import check_settings, setting_of

__all__ = ["ExpertTraining"]


@checked
@dataclass(frozen=True, kw_only=True)
class ExpertTraining:
    """How the experts train.

    Attributes:
        initializer: Builds the networks of a phase; copies of the teacher by default.
        expert: How an expert steps through its phase; along the probability flow by default.
        curriculum: Which phases train together; one after the other by default.
        optimizer: The optimizer of the experts: one for all phases, or one per phase.
        ema: Decay of the weight average that becomes the expert.
        max_grad_norm: Norm to which gradients are clipped.
        accumulate: Rollouts per update, over which gradients are accumulated.

    Raises:
        ValueError: If a number is out of its range.
    """

    initializer: Initializer = field(default_factory=FromTeacher)
    expert: type[Expert] = OdeExpert
    curriculum: Curriculum = field(default_factory=Progressive)
    optimizer: AdamRecipe | Sequence[AdamRecipe] = field(default_factory=AdamRecipe)
    ema: float = 0.99
    max_grad_norm: float = 10.0
    accumulate: int = 1

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise ValueError(f"accumulate must be at least 1, got {self.accumulate}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"an EMA decay must be in [0, 1), got {self.ema}")
        if not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be positive, got {self.max_grad_norm}")

    def check(self, plan: PhasePlan) -> None:
        """Checks that settings per phase fit a plan and the curriculum.

        Raises:
            ValueError: If one has another number of values than the plan has phases, or differs
                between phases that train together.
        """
        check_settings(self.optimizer, plan, "the experts' optimizer")
        for group in self.curriculum.groups(plan):
            self.recipe(group)

    def recipe(self, phases: Sequence[Phase]) -> AdamRecipe:
        """Returns the optimizer recipe of phases that train together.

        Raises:
            ValueError: If they have different ones.
        """
        return setting_of(self.optimizer, phases, "the experts' optimizer")
