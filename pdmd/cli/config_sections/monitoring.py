"""The sections ``[health]``, ``[validation]`` and ``[tracking]``.

They say what is looked at while a run trains, and where it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from pdmd.distillation.buckets import Bucket, Buckets
from pdmd.teachers.base import Teacher
from pdmd.training.monitoring.monitors import Monitor
from pdmd.training.monitoring.probes import HealthProbe
from pdmd.training.monitoring.trackers import TrackedRun, Tracker, trackers

if TYPE_CHECKING:
    from pdmd.evaluation.validation import ValidationSet

__all__ = ["HealthConfig", "TrackingConfig", "ValidationConfig"]


@dataclass(kw_only=True)
class HealthConfig:
    """Measurements of the student beside the teacher while it trains, and what goes wrong."""

    every: int = 50
    """Updates between measurements; 0 for none."""
    samples: int = 64
    """Samples of student and teacher in a measurement; at least two on each rank."""
    teacher_steps: int = 25
    """Steps of the teacher's samples, which are sampled once in a phase."""

    def build(self, seed: int) -> list[Monitor]:
        """Builds the monitors; none if nothing is measured.

        Args:
            seed: Seed of the run.
        """
        if not self.every:
            return []
        return [HealthProbe(self.every, samples=self.samples, steps=self.teacher_steps, seed=seed)]


@dataclass(kw_only=True)
class ValidationConfig:
    """Pictures of fixed prompts and noise, of the student so far beside the teacher."""

    every: int = 0
    """Updates between validations, and one at the end of every phase; 0 for none."""
    prompts: tuple[str, ...] = ()
    """The prompts; by default four of the training's."""
    seeds: int = 2
    """Samples of each prompt."""
    seed: int = 0
    """Seed of the noise."""
    teacher_steps: int = 25
    """Steps of the teacher, from noise to data; an unfinished student is continued by them."""
    batch: int = 0
    """Samples that a rank draws and decodes together; 0 for those of a training batch."""
    fps: float = 16.0
    """Frames per second of videos."""
    sizes: Literal["own", "all"] = "own"
    """The sizes that are sampled: that of the teacher's arguments, or all of teacher.buckets."""

    def choose(self, teacher: Teacher, conditions: Any) -> ValidationSet:
        """Returns the prompts and their conditions.

        Args:
            teacher: The teacher, which encodes prompts that are given.
            conditions: The encoded prompts of the training.

        Raises:
            ValueError: If the teacher does not accept a prompt.
        """
        from pdmd.evaluation.validation import ValidationSet

        prompts: Sequence[Any] = self.prompts
        if prompts:
            condition = teacher.encode(prompts)
        else:
            number = min(4, len(teacher.prompts))
            rows = [i * len(teacher.prompts) // number for i in range(number)]
            prompts = [teacher.prompts[row] for row in rows]
            condition = None if conditions is None else conditions[torch.tensor(rows)]
        return ValidationSet(
            prompts=prompts, condition=condition, seeds=self.seeds, seed=self.seed
        )

    def build(
        self, folder: Path, teacher: Teacher, conditions: Any, buckets: Buckets
    ) -> list[Monitor]:
        """Builds the monitors, one for each size; none if there is no validation.

        Args:
            folder: The run folder.
            teacher: The teacher, which encodes prompts and decodes latents.
            conditions: The encoded prompts of the training.
            buckets: The sizes of samples.

        Raises:
            ValueError: If the teacher does not accept a prompt.
        """
        if not self.every:
            return []
        from pdmd.evaluation.validation import Validator
        from pdmd.teachers.guided import unguided

        sizes: list[Bucket | None] = [None]  # the teacher's own
        if self.sizes == "all":
            sizes += [b for b in buckets if b.latent_shape != teacher.latent_shape]
        chosen, decode = (
            self.choose(teacher, conditions),
            getattr(unguided(teacher), "decode", None),
        )
        return [
            Validator(
                folder / "validation",
                chosen,
                decode,
                every=self.every,
                steps=self.teacher_steps,
                batch=self.batch,
                fps=self.fps,
                bucket=bucket,
            )
            for bucket in sizes
        ]


@dataclass(kw_only=True)
class TrackingConfig:
    """Where the scalars and grids of a run are shown."""

    trackers: tuple[str, ...] = ("tensorboard",)
    """Names of trackers: tensorboard, wandb, trackio, or others that plugins register."""
    project: str = "pdmd"
    """The project in which wandb and trackio list the run."""

    def check(self) -> None:
        """Checks the names.

        Raises:
            ValueError: If a tracker is unknown.
        """
        for name in self.trackers:
            trackers[name]

    def build(self, folder: Path, config: Mapping[str, Any]) -> list[Tracker]:
        """Builds the trackers.

        Args:
            folder: The run folder.
            config: The resolved configuration.

        Raises:
            MissingExtra: If a package is not installed.
        """
        run = TrackedRun(folder=folder, project=self.project, config=config)
        return [trackers[name](run) for name in self.trackers]
