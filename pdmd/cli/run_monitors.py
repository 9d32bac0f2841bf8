"""What observes and records a run, as its configuration says."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from pdmd.cli.config import DistillConfig
from pdmd.teachers.base import Teacher
from pdmd.training.monitoring.monitors import Monitor
from pdmd.training.monitoring.recorder import NullRecorder, Recorder, RunRecorder
from pdmd.training.monitoring.throughput import Throughput
from pdmd.typing import Conditions

__all__ = ["build_monitors", "build_recorder"]


def build_recorder(config: DistillConfig, folder: Path, *, main: bool, progress: bool) -> Recorder:
    """Builds the recorder of a run.

    Args:
        config: The configuration.
        folder: The run folder.
        main: Whether this rank records; others record nothing.
        progress: Whether to show progress.

    Raises:
        MissingExtra: If the package of a tracker is not installed.
    """
    if not main:
        return NullRecorder()
    trackers = config.tracking.build(folder, asdict(config))
    return RunRecorder(folder, progress=progress, trackers=trackers)


def build_monitors(
    config: DistillConfig, folder: Path, teacher: Teacher, conditions: Conditions | None
) -> list[Monitor]:
    """Builds the monitors of a run, on all ranks.

    Args:
        config: The configuration.
        folder: The run folder.
        teacher: The teacher, which encodes the prompts of the validation and decodes latents.
        conditions: The encoded prompts of the training.

    Raises:
        ValueError: If the teacher does not accept a prompt of the validation.
    """
    health = config.health.build(config.train.seed)
    buckets = config.teacher.build_buckets(teacher)
    validation = config.validation.build(folder, teacher, conditions, buckets)
    return [Throughput(buckets), *health, *validation]
