r"""Network evaluations of one cycle, in closed form.

With :math:`m` fake updates and :math:`a` accumulated rollouts, a cycle makes :math:`r = m + a`
rollouts, or :math:`r = \max(1, \lceil m / b \rceil) + a - 1` where each serves :math:`b > 1` fake
updates and the expert's serves the first of them. A rollout takes :math:`(n_k + 1) / 2` steps of
its own on average where it stops at a uniformly drawn step, :math:`n_k` where it takes all. The
teacher is asked only in the expert's update.

A rollout that starts afresh first passes the :math:`n_1 + \dots + n_{k-1}` steps of the frozen
experts. One that starts at a state of a ring passes none, but the ring's batches are made, one for
:math:`u` uses: a batch carried on from the phase before by :math:`n_{k-1}` steps, others by all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from pdmd.distillation.experts import Truncation
from pdmd.distillation.phases import PhasePlan
from pdmd.training.phase_inputs import PhaseInputBuffer, PhaseInputs

__all__ = ["Calls", "Work", "calls"]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a training does, apart from its networks.

    Attributes:
        plan: The phases.
        truncation: Where a rollout stops inside a phase; a exit_step is taken to be drawn
            uniformly.
        batch_size: Samples in each rollout, over all ranks.
        fake_updates: Fake updates in every cycle.
        accumulate: Rollouts whose gradients make one update of the expert.
        timestep_samples: Times at which the expert's objective compares each sample.
        evaluations: Network evaluations of one call of the teacher; 2 under guidance.
        fake_updates_per_rollout: Fake updates that one rollout serves.
        phase_inputs: Where rollouts start; each at a state of its own by default.
        updates: Updates of each expert, one number for all or one per phase, which say how often
            a ring is filled.
        activation_checkpointing: Whether the backward pass computes the networks' units again.
    """

    plan: PhasePlan
    truncation: Truncation
    batch_size: int
    fake_updates: int
    accumulate: int = 1
    timestep_samples: int = 1
    evaluations: int = 1
    fake_updates_per_rollout: int = 1
    phase_inputs: PhaseInputs | None = None
    updates: int | tuple[int, ...] = 1
    activation_checkpointing: bool = False

    @property
    def rollouts(self) -> int:
        """Rollouts in a cycle."""
        if self.fake_updates_per_rollout == 1:
            return self.fake_updates + self.accumulate
        return (
            max(1, math.ceil(self.fake_updates / self.fake_updates_per_rollout))
            + self.accumulate
            - 1
        )

    def updates_of(self, index: int) -> int:
        """Returns the updates of a phase's expert."""
        return self.updates if isinstance(self.updates, int) else self.updates[index]

    def recorded_steps(self, index: int) -> int:
        """Returns the steps of a phase's rollout whose gradient is recorded."""
        phase = self.plan[index]
        exit_step = self.truncation(phase, torch.Generator().manual_seed(0))
        return phase.steps if exit_step is None else 1


@dataclass(frozen=True, kw_only=True)
class Calls:
    """Calls of the networks in one cycle, by role, for each sample of the batch.

    Attributes:
        forward: Forward passes; the teacher's count its evaluations.
        backward: Forward passes that record a gradient, each followed by a backward pass.
        recomputed: Of these, those whose units the backward pass computes again.
        frozen: Of the forward passes, those of every frozen expert.
    """

    forward: dict[str, float]
    backward: dict[str, float]
    recomputed: dict[str, float]
    frozen: tuple[float, ...] = ()


def calls(work: Work, index: int) -> Calls:
    """Returns a cycle's calls in a phase; on average where rollouts stop at random.

    Times the batch they are what an :class:`~pdmd.training.monitoring.accounting.Account` counts.

    Args:
        work: What the training does.
        index: The phase, from 0.
    """
    steps = work.plan[index].steps
    recorded = work.recorded_steps(index)
    own = steps if recorded == steps else (steps + 1) / 2
    frozen = _frozen(work, index)
    asked = work.accumulate * work.timestep_samples
    backward: dict[str, float] = {
        "teacher": 0,
        "fake": work.fake_updates,
        "generator": work.accumulate * recorded,
        "frozen": 0,
    }
    return Calls(
        forward={
            "teacher": asked * work.evaluations,
            "fake": work.fake_updates + asked,
            "generator": work.rollouts * own,
            "frozen": sum(frozen),
        },
        backward=backward,
        recomputed={role: n * work.activation_checkpointing for role, n in backward.items()},
        frozen=frozen,
    )


def _frozen(work: Work, index: int) -> tuple[float, ...]:
    """Returns a cycle's forward passes through each frozen expert, on average."""
    steps = [phase.steps for phase in work.plan.phases[:index]]
    ring = work.phase_inputs
    if not isinstance(ring, PhaseInputBuffer):
        return tuple(float(work.rollouts * n) for n in steps)
    made = [0] * (index + 1)  # batches that the last fill made in every phase
    passes: list[int] = []
    for k in range(index + 1):
        fills, rest = divmod(work.updates_of(k) * work.rollouts, ring.batches * ring.uses)
        passes = [0] * index
        needs = [ring.batches] * fills + ([ring.batches_computed(rest)] if rest else [])
        for n, need in enumerate(needs):
            if n:  # used up: a new fill begins at noise
                made = [0] * (index + 1)
            for i in range(k):
                passes[i] += max(need - max(made[i + 1 : k + 1]), 0)
            made[k] = max(made[k], need)
    per_cycle = work.updates_of(index)
    return tuple(p * n / per_cycle for p, n in zip(passes, steps, strict=True))
