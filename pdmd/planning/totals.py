"""Totals of a run: cycles, prompts, FLOPs, hours, and what it writes.

A checkpoint has, in float32, the expert's weights, their average and two moments, and the fake
score's weights and two moments (:mod:`pdmd.training.checkpoints.sizes`). Finished experts are
written once, beside the checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pdmd.arguments import checked
from pdmd.planning.duration import CycleSeconds
from pdmd.planning.evaluations import Workload
from pdmd.planning.memory import PhaseFootprints, Precision
from pdmd.training.phase_inputs import PhaseInputBuffer

__all__ = ["RunTotals", "checkpoint_bytes", "run_totals"]

_FLOAT = 4


@checked
@dataclass(frozen=True, kw_only=True)
class RunTotals:
    """Totals of a run, all phases together.

    Attributes:
        cycles: Cycles: updates of the experts.
        prompts: Prompts drawn; a store with fewer repeats them.
        flops: FLOPs.
        seconds: Seconds of the cycles.
        gpu_hours: Hours of the cycles, times the number of GPUs.
        checkpoint: Bytes of the largest checkpoint.
        student: Bytes of the student.
        disk: Bytes of the run's folder: the checkpoints kept and one being written, the finished
            experts, the student and the phase-input buffer if it is in files.
    """

    cycles: int
    prompts: int
    flops: float
    seconds: float
    gpu_hours: float
    checkpoint: int
    student: int
    disk: int


@checked
def checkpoint_bytes(roles: PhaseFootprints, work: Workload, precision: Precision) -> int:
    """Returns the bytes of a checkpoint in a phase.

    Args:
        roles: The footprints of the phase's networks.
        work: The settings of a cycle.
        precision: The dtypes of storage.
    """
    moments = 2 * precision.moment_bytes
    own = roles.generator.parameters * (2 * _FLOAT + moments)
    fake = roles.fake.parameters * (
        _FLOAT + (moments if work.fake_updates_of(len(roles.frozen)) else 0)
    )
    return round(own + fake)


@checked
def run_totals(
    roles: Sequence[PhaseFootprints],
    work: Workload,
    flops: Sequence[float],
    seconds: Sequence[CycleSeconds],
    *,
    gpus: int,
    precision: Precision,
    checkpoints: int = 2,
) -> RunTotals:
    """Returns the totals of a run.

    Args:
        roles: The footprints of the networks, by phase.
        work: The settings of a cycle.
        flops: FLOPs of a cycle, by phase.
        seconds: Seconds of a cycle, by phase.
        gpus: The number of GPUs.
        precision: The dtypes of storage.
        checkpoints: Checkpoints that are kept; with 0, the newest is until the run has ended.
    """
    updates = [work.updates_of(k) for k in range(len(roles))]
    taken = [n * work.rollouts(k) for k, n in enumerate(updates)]
    largest = max(checkpoint_bytes(r, work, precision) for r in roles)
    finished = precision.average.itemsize * sum(r.generator.parameters for r in roles[:-1])
    student = sum(r.generator.parameters for r in roles) * precision.frozen.itemsize
    duration = sum(n * s.total for n, s in zip(updates, seconds, strict=True))
    buffer, stored = work.phase_inputs, 0
    if isinstance(buffer, PhaseInputBuffer) and buffer.folder is not None:
        batches = max(buffer.batches_computed(n) for n in taken)
        stored = batches * work.batch_size * roles[0].generator.latents
    return RunTotals(
        cycles=sum(updates),
        prompts=sum(taken) * work.batch_size,
        flops=sum(n * f for n, f in zip(updates, flops, strict=True)),
        seconds=duration,
        gpu_hours=duration * gpus / 3600,
        checkpoint=largest,
        student=student,
        disk=(max(checkpoints, 1) + 1) * largest + finished + student + stored,
    )
