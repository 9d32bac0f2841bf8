"""Expert training: initialization, optimizer and weight average of the experts."""

from __future__ import annotations

from dataclasses import dataclass, field

from pdmd.arguments import checked
from pdmd.distillation.experts import Expert, OdeExpert
from pdmd.distillation.initializers import FromTeacher, Initializer
from pdmd.training.curriculum import Curriculum, Progressive
from pdmd.training.optimizers import AdamRecipe

__all__ = ["ExpertTraining"]


@checked
@dataclass(frozen=True, kw_only=True)
class ExpertTraining:
    """How the experts train.

    Attributes:
        initializer: Builds the networks of a phase; copies of the teacher by default.
        expert: How an expert steps through its phase; along the probability flow by default.
        curriculum: Which phases train together; one after the other by default.
        optimizer: The optimizer of the experts.
        ema: Decay of the weight average that becomes the expert.
        max_grad_norm: Norm to which gradients are clipped.
        accumulate: Rollouts per update, over which gradients are accumulated.

    Raises:
        ValueError: If a number is out of its range.
    """

    initializer: Initializer = field(default_factory=FromTeacher)
    expert: type[Expert] = OdeExpert
    curriculum: Curriculum = field(default_factory=Progressive)
    optimizer: AdamRecipe = field(default_factory=AdamRecipe)
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
