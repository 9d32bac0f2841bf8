r"""Network evaluations of one cycle, in closed form.

With :math:`m` fake updates, :math:`a` accumulated rollouts and :math:`B` samples, a cycle makes
:math:`m + a` rollouts. Each passes the frozen experts' :math:`n_1 + \dots + n_{k-1}` steps and
then :math:`(n_k + 1) / 2` steps of its own on average where it stops at a uniformly drawn step,
:math:`n_k` where it takes all. The teacher is asked only in the expert's update.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pdmd.experts import Truncation
from pdmd.phases import PhasePlan

__all__ = ["Calls", "Work", "calls"]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a training does, apart from its networks.

    Attributes:
        plan: The phases.
        truncation: Where a rollout stops inside a phase; a stop is taken to be drawn uniformly.
        batch_size: Samples in each rollout, over all ranks.
        fake_updates: Fake updates in every cycle.
        accumulate: Rollouts whose gradients make one update of the expert.
        draws: Times at which the expert's objective compares each sample.
        evaluations: Network evaluations of one call of the teacher; 2 under guidance.
    """

    plan: PhasePlan
    truncation: Truncation
    batch_size: int
    fake_updates: int
    accumulate: int = 1
    draws: int = 1
    evaluations: int = 1

    def recorded_steps(self, index: int) -> int:
        """Returns the steps of a phase's rollout whose gradient is recorded."""
        phase = self.plan[index]
        stop = self.truncation(phase, torch.Generator().manual_seed(0))
        return phase.steps if stop is None else 1


@dataclass(frozen=True, kw_only=True)
class Calls:
    """Calls of the networks in one cycle, by role, for each sample of the batch.

    Attributes:
        forward: Forward passes; the teacher's count its evaluations.
        backward: Forward passes that record a gradient, each followed by a backward pass.
    """

    forward: dict[str, float]
    backward: dict[str, float]


def calls(work: Work, index: int) -> Calls:
    """Returns a cycle's calls in a phase; on average where rollouts stop at random.

    Times the batch they are what an :class:`~pdmd.training.accounting.Account` counts.

    Args:
        work: What the training does.
        index: The phase, from 0.
    """
    steps = work.plan[index].steps
    recorded = work.recorded_steps(index)
    rollouts = work.fake_updates + work.accumulate
    own = steps if recorded == steps else (steps + 1) / 2
    asked = work.accumulate * work.draws
    return Calls(
        forward={
            "teacher": asked * work.evaluations,
            "fake": work.fake_updates + asked,
            "generator": rollouts * own,
            "frozen": rollouts * sum(phase.steps for phase in work.plan.phases[:index]),
        },
        backward={
            "teacher": 0,
            "fake": work.fake_updates,
            "generator": work.accumulate * recorded,
            "frozen": 0,
        },
    )
