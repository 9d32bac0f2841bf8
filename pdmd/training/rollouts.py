r"""Rollouts: the student's samples :math:`x_{t_k}`, on which expert and fake score train."""

from __future__ import annotations

from dataclasses import dataclass, field

from pdmd.arguments import checked
from pdmd.distillation.buckets import Buckets
from pdmd.distillation.experts import StochasticTruncation, Truncation
from pdmd.training.phase_inputs import FreshPhaseInputs, PhaseInputs

__all__ = ["Rollouts"]


@checked
@dataclass(frozen=True, kw_only=True)
class Rollouts:
    r"""How a phase's expert is rolled out, from :math:`x_{t_{k-1}}` to :math:`x_{t_k}`.

    Attributes:
        batch_size: Samples in each rollout, over all ranks.
        truncation: Chooses the exit step of a rollout; uniformly at random by default.
        phase_inputs: Supplies :math:`x_{t_{k-1}}`; freshly sampled through the earlier experts by
            default. A :class:`~pdmd.training.phase_inputs.PhaseInputBuffer` stores them and
            reuses each several times.
        buckets: The sizes of samples, of which every rollout has one; the teacher's own by
            default.

    Raises:
        ValueError: If the batch size is below 1.
    """

    batch_size: int = 128
    truncation: Truncation = field(default_factory=StochasticTruncation)
    phase_inputs: PhaseInputs = field(default_factory=FreshPhaseInputs)
    buckets: Buckets | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
