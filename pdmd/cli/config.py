"""The configuration of a run: keyword-only dataclasses of plain values.

Objects are built from it here, and configuration goes no further.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pdmd.cli.config_sections.lora import LoraConfig
from pdmd.cli.config_sections.monitoring import HealthConfig, TrackingConfig, ValidationConfig
from pdmd.cli.config_sections.objective import ObjectiveConfig
from pdmd.cli.config_sections.plan import PlanConfig
from pdmd.cli.config_sections.student import StudentConfig
from pdmd.cli.config_sections.teacher import NetworkConfig, TeacherConfig
from pdmd.cli.config_sections.train import TrainConfig
from pdmd.cli.parallel_config import ParallelConfig
from pdmd.cli.values import short
from pdmd.distributed.runtime import Runtime

__all__ = [
    "DistillConfig",
    "EvaluateConfig",
    "HealthConfig",
    "LoraConfig",
    "NetworkConfig",
    "ObjectiveConfig",
    "ParallelConfig",
    "PlanConfig",
    "StudentConfig",
    "TeacherConfig",
    "TrackingConfig",
    "TrainConfig",
    "ValidationConfig",
]

RANGES = {
    "network": {"updates": (1, 10**9)},
    "train": {
        "updates": (1, 10**9),
        "fake_updates": (0, 10**4),
        "batch_size": (1, 10**6),
        "accumulate": (1, 10**4),
        "fake_accumulate": (1, 10**4),
        "fake_updates_per_rollout": (1, 10**4),
        "buffer_batches": (0, 10**6),
        "buffer_uses": (1, 10**6),
        "buffer_chunk": (1, 10**6),
        "checkpoint_every": (0, 10**9),
        "checkpoint_keep": (0, 10**4),
        "max_consecutive_skips": (0, 10**6),
    },
    "parallel": {"timeout": (1, 10**6), "heartbeat_timeout": (3, 10**6)},
    "objective": {"timestep_samples": (1, 1_000)},
    "health": {"every": (0, 10**9), "samples": (2, 10**6), "teacher_steps": (1, 10**4)},
    "validation": {
        "every": (0, 10**9),
        "seeds": (1, 10**4),
        "seed": (0, 2**63 - 1),
        "teacher_steps": (1, 10**4),
        "batch": (0, 10**6),
    },
    "evaluate": {
        "samples": (100, 10**6),
        "teacher_steps": (1, 10**4),
        "batch": (0, 10**6),
        "seed": (0, 2**63 - 1),
    },
}
"""The ranges of whole numbers, by section and key."""


@dataclass(kw_only=True)
class EvaluateConfig:
    """The comparison of student and teacher at the end of a run."""

    at_end: Literal["auto", "always", "never"] = "auto"
    """Whether to compare: auto does up to a billion parameters of the teacher."""
    samples: int = 2000
    """Samples of each method."""
    teacher_steps: int = 50
    """Steps with which the teacher is sampled."""
    batch: int = 0
    """Samples that a rank draws together; 0 for about a million latent values."""
    seed: int = 1234
    """Seed of the samples."""


@dataclass(kw_only=True)
class DistillConfig:
    """Distills a teacher into a few-step mixture of experts, evaluates it and writes a report.

    A key on the command line replaces that of the preset or TOML file. Arguments by name
    (--teacher.arguments.dim 2, --network.arguments.width 32) and single keys of tables
    (--objective.times.shift 7, --train.fake.lr_decay.final 0.1) are merged with the file's.
    """

    out: str = ""
    """The run folder; runs/NAME by default."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def check(self) -> None:
        """Builds everything that is quick to build, for its errors.

        Raises:
            ValueError: If a value is out of its range, or a name or argument is unknown.
        """
        self.teacher.check_name()
        self.network.check()
        self.student.check()
        for section in RANGES:
            _check_ranges(section, getattr(self, section))
        if not 0 < self.validation.fps <= 1000:
            raise ValueError(
                f"validation.fps is above 0 and at most 1000, got {self.validation.fps:g}"
            )
        self.tracking.check()
        plan = self.plan.build()
        for phase in self.train.phases(plan):
            _check_ranges("train", phase)
        objectives = self.objective.compose()
        objectives.check(plan)
        adapters = zip(("generator", "fake"), self.lora.build(), strict=True)
        adapted = tuple(role for role, adapter in adapters if adapter is not None)
        self.train.types.build(self.parallel.precision).check(ema=self.train.ema, adapted=adapted)
        self.train.check(plan)
        if self.train.adam_bits == 8 and self.parallel.tp > 1:
            raise ValueError(
                f"train.adam_bits = 8 does not support parallel.tp = {self.parallel.tp}, which "
                "splits the rows of its blocks; set train.adam_bits = 32 or parallel.tp = 1"
            )
        if objectives.follows_phase and self.train.curriculum != "progressive":
            raise ValueError(
                "a density ratio from a critic needs phases that train one after the other; use "
                f"train.curriculum = 'progressive', got {self.train.curriculum!r}"
            )

    def build_runtime(self) -> Runtime:
        """Builds the runtime; on several ranks it joins them.

        Raises:
            ValueError: As :meth:`~pdmd.cli.parallel_config.ParallelConfig.build`.
        """
        types = self.train.types.build(self.parallel.precision)
        return self.parallel.build(self.train.seed, types)


def _check_ranges(section: str, values: object) -> None:
    for name, (low, high) in RANGES[section].items():
        value = getattr(values, name)
        if not low <= value <= high:
            raise ValueError(f"{section}.{name} is from {low:,} to {high:,}, got {short(value)}")
