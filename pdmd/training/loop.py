"""The loop of a phase: its cycles, what is recorded of them, and its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pdmd.distillation.experts import Expert
from pdmd.training.checkpoints.checkpointer import Checkpointer, Interrupted
from pdmd.training.monitoring.calibration import calibration_slopes
from pdmd.training.monitoring.recorder import Recorder
from pdmd.training.phase_inputs import FreshPhaseInputs
from pdmd.training.trainer import PhaseTrainer

__all__ = ["calibrate", "train_phase"]


def train_phase(
    trainer: PhaseTrainer,
    phases: int,
    finished: Sequence[Expert],
    recorder: Recorder,
    checkpointer: Checkpointer | None,
) -> None:
    """Runs a phase's cycles to its end, from where it stands.

    Args:
        trainer: The phase.
        phases: Phases of the plan.
        finished: The experts before it, for checkpoints.
        recorder: Hears of progress, scalars and refused updates.
        checkpointer: Writes checkpoints, if any are wanted.

    Raises:
        Interrupted: If the checkpointer was asked to stop; its checkpoint is written.
        NonFiniteError: If too many updates in a row are not finite.
    """
    recorder.on_phase_start(trainer.phase, phases, trainer.updates, trainer.update)
    while trainer.update < trainer.updates:
        if checkpointer is not None and trainer.runtime.any(checkpointer.stop_requested):
            _save(checkpointer, finished, trainer)
            checkpointer.store.wait()
            raise Interrupted(
                f"stopped in phase {trainer.phase.index + 1} after update {trainer.update}"
            )
        scalars = trainer.cycle()
        recorder.on_update(trainer.update)
        for complaint in trainer.health.drain():
            recorder.on_skipped_step(complaint)
        if trainer.update % recorder.interval == 0 or trainer.update == trainer.updates:
            values = {name: float(value) for name, value in scalars.items()}
            values |= trainer.account.scalars()
            recorder.on_scalars(trainer.phase, trainer.update, values)
        if checkpointer is not None and trainer.update % checkpointer.every == 0:
            _save(checkpointer, finished, trainer)


def _save(checkpointer: Checkpointer, finished: Sequence[Expert], trainer: PhaseTrainer) -> None:
    trainer.settle()
    checkpointer.save(finished, trainer, trainer.generator, trainer.account, trainer.phase_inputs)


def calibrate(trainer: PhaseTrainer, recorder: Recorder) -> None:
    """Records how both scores are calibrated on a phase's students, at ten times of each.

    Args:
        trainer: The phase, trained.
        recorder: Hears of it.
    """
    fresh = FreshPhaseInputs()  # a ring is not filled for one batch
    fresh.on_phase_start(trainer.phase_inputs.producer)
    for k, expert in enumerate(trainer.experts):
        bounds = trainer.generator_objective.time_bounds(expert.phase)
        if bounds is None:
            continue
        low, high = bounds
        times = [low + (high - low) * i / 9 for i in range(10)]
        rollout = trainer.rollout(k, record=False, phase_inputs=fresh)
        models = trainer.models(k, rollout.exit_step)
        fake, real = calibration_slopes(
            [models.fake, models.real],
            rollout.x_s,
            expert.phase.t_end,
            times,
            rollout.condition,
            trainer.generator,
        )
        slopes = trainer.runtime.mean(torch.tensor([fake, real], device=trainer.runtime.device))
        recorder.on_calibration(expert.phase, times, *slopes.tolist())
