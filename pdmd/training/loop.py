"""The training loop of a phase, with its records and checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch
import torch.distributed as dist

from pdmd.distillation.experts import Expert
from pdmd.training.checkpoints.checkpointer import Decision, Interrupted
from pdmd.training.checkpoints.training_state import save_training
from pdmd.training.monitoring.calibration import calibration_slopes
from pdmd.training.phase_inputs import FreshPhaseInputs
from pdmd.training.trainer import PhaseTrainer

__all__ = ["calibrate", "train_phase"]


def train_phase(trainer: PhaseTrainer, phases: int, finished: Sequence[Expert]) -> None:
    """Trains a phase to its end, starting at the trainer's current update.

    Args:
        trainer: The trainer of the phase.
        phases: Number of phases in the plan.
        finished: The experts of earlier phases, for checkpoints.

    Raises:
        Interrupted: If a stop was requested, after writing a checkpoint.
        NonFiniteError: If too many updates in a row are not finite.
    """
    session = trainer.session
    recorder, checkpointer = session.recorder, session.checkpointer

    def save() -> None:
        save_training(session, finished, trainer.generator, trainer.phase_inputs, trainer)
        session.report_checkpoints()

    recorder.on_phase_start(trainer.phase, phases, trainer.updates, trainer.update)
    sound = True  # the state is that between two updates
    try:
        while trainer.update < trainer.updates:
            decision = checkpointer.decide(trainer.update, session.runtime.ranks)
            if decision is not Decision.CONTINUE:
                save()
            if decision is Decision.STOP:
                checkpointer.wait()
                raise Interrupted(
                    f"stopped in phase {trainer.phase.index + 1} after update {trainer.update}"
                )
            sound = False
            scalars = trainer.cycle()
            sound = True
            recorder.on_update(trainer.update)
            for warning in trainer.health.drain():
                recorder.on_skipped_step(warning)
            if session.monitors:
                observed = trainer.observed(phases)
                with session.account.paused():
                    for monitor in session.monitors:
                        monitor.on_update(observed)
            if trainer.update % recorder.interval == 0 or trainer.update == trainer.updates:
                values = {name: float(value) for name, value in scalars.items()}
                values |= session.account.scalars()
                recorder.on_scalars(trainer.phase, trainer.update, values)
        if trainer.experts[-1].phase.index + 1 == phases:  # from which it may be trained longer
            save()
    except Interrupted:
        raise
    except Exception:
        if sound and not dist.is_initialized():  # a single rank cannot save for all
            with suppress(Exception):  # the first error is the one to report
                save()
                checkpointer.wait()
        raise


def calibrate(trainer: PhaseTrainer) -> None:
    """Records the calibration of fake and real score on each expert's samples, at ten times.

    It does nothing if the recorder wants none.

    Args:
        trainer: The trainer of the finished phase.
    """
    runtime, recorder = trainer.session.runtime, trainer.session.recorder
    if not recorder.calibrations:
        return
    fresh = FreshPhaseInputs()  # avoids filling a buffer for one batch
    fresh.on_phase_start(trainer.phase_inputs.source)
    for k, expert in enumerate(trainer.experts):
        if trainer.generator_objective.time_bounds(expert.phase) is None:
            continue
        rollout = trainer.rollout(k, record=False, phase_inputs=fresh)
        low, high = trainer.generator_objective.time_bounds(rollout.phase) or (0.0, 1.0)
        times = [low + (high - low) * i / 9 for i in range(10)]
        models = trainer.models(k, rollout.exit_step)
        fake, real = calibration_slopes(
            [models.fake, models.real],
            rollout.x_s,
            rollout.phase.t_end,
            times,
            rollout.condition,
            trainer.generator,
        )
        slopes = runtime.ranks.mean(torch.tensor([fake, real], device=runtime.device))
        recorder.on_calibration(expert.phase, times, *slopes.tolist())
