r"""Network evaluations of one cycle, in closed form.

A cycle is :math:`m` fake updates over :math:`f` accumulated rollouts each, and one expert update
over :math:`a`. It has :math:`r = m f + a` rollouts. If rollouts are reused for :math:`b > 1` fake
updates, it has :math:`r = \max(1, \lceil m / b \rceil f) + a - 1`, because the expert's first
rollout is one of the :math:`f` that serve the first :math:`b` fake updates. A rollout
takes :math:`(n_k + 1) / 2` steps of expert :math:`k` on average if its exit step is uniform, and
:math:`n_k` without truncation. The teacher is evaluated in the expert's update only.

With fresh phase inputs, a rollout first takes the :math:`n_1 + \dots + n_{k-1}` steps of the
frozen experts. With a phase-input buffer it takes none, but the buffer is filled: one batch for
every :math:`u` uses, advanced from the previous phase's batch by :math:`n_{k-1}` steps if there is
one, and from noise by all :math:`n_1 + \dots + n_{k-1}` otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from pdmd.arguments import at_least, checked
from pdmd.distillation.experts import Truncation
from pdmd.distillation.phases import PhasePlan
from pdmd.teachers.guided import JOINED_ROWS
from pdmd.training.phase_inputs import PhaseInputBuffer, PhaseInputs

__all__ = ["CyclePasses", "Workload", "cycle_passes"]


@checked
@dataclass(frozen=True, kw_only=True)
class Workload:
    """The settings of a training cycle that determine its cost, networks apart.

    Attributes:
        plan: The phases.
        truncation: The exit step of a rollout; if it is random, it is assumed uniform.
        batch_size: Samples in each rollout, over all ranks.
        fake_updates: Fake updates in every cycle, one number for all phases or one per phase.
        accumulate: Rollouts whose gradients are summed for one expert update.
        fake_accumulate: Rollouts whose gradients are summed for one fake update.
        timestep_samples: Times :math:`t` per sample at which the generator objective evaluates the
            scores.
        evaluations: NFE of one evaluation of the teacher; 2 with classifier-free guidance.
        masked: Whether texts have a mask; guidance then calls the teacher's network twice.
        fake_updates_per_rollout: Fake updates that reuse one rollout.
        phase_inputs: Where rollouts start; fresh phase inputs by default.
        updates: Updates of each expert, one number for all or one per phase; they determine how
            often a phase-input buffer is filled.
        activation_checkpointing: Whether the networks' units are recomputed in the backward pass.
    """

    plan: PhasePlan
    truncation: Truncation
    batch_size: int
    fake_updates: int | tuple[int, ...]
    accumulate: int = 1
    fake_accumulate: int = 1
    timestep_samples: int = 1
    evaluations: int = 1
    masked: bool = False
    fake_updates_per_rollout: int = 1
    phase_inputs: PhaseInputs | None = None
    updates: int | tuple[int, ...] = 1
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        updates = self.updates if isinstance(self.updates, tuple) else (self.updates,)
        fakes = self.fake_updates if isinstance(self.fake_updates, tuple) else (self.fake_updates,)
        at_least(0, fake_updates=min(fakes, default=0))
        at_least(
            1,
            batch_size=self.batch_size,
            accumulate=self.accumulate,
            fake_accumulate=self.fake_accumulate,
            timestep_samples=self.timestep_samples,
            evaluations=self.evaluations,
            fake_updates_per_rollout=self.fake_updates_per_rollout,
            updates=min(updates, default=0),
        )

    def fake_updates_of(self, index: int) -> int:
        """Returns the fake updates in a cycle of a phase."""
        number = self.fake_updates
        return number if isinstance(number, int) else number[index]

    def rollouts(self, index: int) -> int:
        """Returns the rollouts in a cycle of a phase."""
        fake_updates = self.fake_updates_of(index)
        if self.fake_updates_per_rollout == 1:
            return fake_updates * self.fake_accumulate + self.accumulate
        groups = math.ceil(fake_updates / self.fake_updates_per_rollout)
        return max(1, groups * self.fake_accumulate) + self.accumulate - 1

    def teacher_calls(self, rows: float, *, sharded: bool) -> int:
        """Returns the calls of its network in one evaluation of the teacher.

        Args:
            rows: Rows of a rank's batch.
            sharded: Whether the network is; see :class:`~pdmd.teachers.guided.Guided`.
        """
        apart = self.masked or (rows > JOINED_ROWS and not sharded)
        return self.evaluations if apart else 1

    def updates_of(self, index: int) -> int:
        """Returns the updates of a phase's expert."""
        return self.updates if isinstance(self.updates, int) else self.updates[index]

    def recorded_steps(self, index: int) -> int:
        """Returns the steps of a phase's rollout whose gradient is recorded."""
        phase = self.plan[index]
        exit_step = self.truncation(phase, torch.Generator().manual_seed(0))
        return phase.steps if exit_step is None else 1


@checked
@dataclass(frozen=True, kw_only=True)
class CyclePasses:
    """Forward and backward passes of one cycle by role, per sample of the batch.

    Attributes:
        forward: Forward passes; for the teacher, its NFE.
        backward: Backward passes.
        recomputed: Forward passes recomputed by activation checkpointing.
        frozen: Forward passes of each frozen expert.
    """

    forward: dict[str, float]
    backward: dict[str, float]
    recomputed: dict[str, float]
    frozen: tuple[float, ...] = ()


@checked
def cycle_passes(work: Workload, index: int) -> CyclePasses:
    """Returns the passes of one cycle of a phase, averaged over random exit steps.

    Times the batch size, they are what an :class:`~pdmd.training.monitoring.accounting.Account`
    counts.

    Args:
        work: The settings of the cycle.
        index: The phase, from 0.
    """
    steps = work.plan[index].steps
    recorded = work.recorded_steps(index)
    own = steps if recorded == steps else (steps + 1) / 2
    frozen = _frozen(work, index)
    scored = work.accumulate * work.timestep_samples
    learned = work.fake_updates_of(index) * work.fake_accumulate
    backward: dict[str, float] = {
        "teacher": 0,
        "fake": learned,
        "generator": work.accumulate * recorded,
        "frozen": 0,
    }
    return CyclePasses(
        forward={
            "teacher": scored * work.evaluations,
            "fake": learned + scored,
            "generator": work.rollouts(index) * own,
            "frozen": sum(frozen),
        },
        backward=backward,
        recomputed={role: n * work.activation_checkpointing for role, n in backward.items()},
        frozen=frozen,
    )


def _frozen(work: Workload, index: int) -> tuple[float, ...]:
    """Returns the mean forward passes of a cycle through each frozen expert."""
    steps = [phase.steps for phase in work.plan.phases[:index]]
    buffer = work.phase_inputs
    if not isinstance(buffer, PhaseInputBuffer):
        return tuple(float(work.rollouts(index) * n) for n in steps)
    computed = [0] * (index + 1)  # batches of the last fill in every phase
    passes: list[int] = []
    for k in range(index + 1):
        taken = work.updates_of(k) * work.rollouts(k)
        fills, rest = divmod(taken, buffer.batches * buffer.uses)
        passes = [0] * index
        needs = [buffer.batches] * fills + ([buffer.batches_computed(rest)] if rest else [])
        for n, need in enumerate(needs):
            if n:  # exhausted: a new fill starts from noise
                computed = [0] * (index + 1)
            for i in range(k):
                passes[i] += max(need - max(computed[i + 1 : k + 1]), 0)
            computed[k] = max(computed[k], need)
    per_cycle = work.updates_of(index)
    return tuple(p * n / per_cycle for p, n in zip(passes, steps, strict=True))
