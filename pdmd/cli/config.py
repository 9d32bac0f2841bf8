"""The configuration of a run: keyword-only dataclasses, of plain values.

Objects are built from it here, and configuration goes no further.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from pdmd.cli.parallel_config import ParallelConfig
from pdmd.distillation.adapters import LowRank
from pdmd.distillation.experts import FullGradient, StochasticTruncation, experts
from pdmd.distillation.phases import Disjoint, Nested, PhasePlan
from pdmd.objectives import (
    DistributionMatching,
    LogSnrTimes,
    SubintervalScoreMatching,
    UniformTimes,
    score_difference_weightings,
    weightings,
)
from pdmd.teachers.base import Teacher, import_plugins, networks, teachers
from pdmd.teachers.guided import guided
from pdmd.teachers.with_schedule import on_schedule, schedules
from pdmd.training.curriculum import split_updates
from pdmd.training.fake_scores import AdaptiveUpdates, FakeUpdates, FixedUpdates
from pdmd.training.optimizers import AdamRecipe
from pdmd.training.phase_inputs import FreshPhaseInputs, PhaseInputBuffer, PhaseInputs

__all__ = [
    "DistillConfig",
    "EvaluateConfig",
    "LoraConfig",
    "NetworkConfig",
    "ObjectiveConfig",
    "ParallelConfig",
    "PlanConfig",
    "TeacherConfig",
    "TrainConfig",
    "short",
]


RANGES = {
    "network": {"width": (1, 65_536), "depth": (1, 1_000), "updates": (1, 10**9)},
    "train": {
        "updates": (1, 10**9),
        "fake_updates": (0, 10**4),
        "batch_size": (1, 10**6),
        "accumulate": (1, 10**4),
        "fake_updates_per_rollout": (1, 10**4),
        "buffer_batches": (0, 10**6),
        "buffer_uses": (1, 10**6),
        "buffer_together": (1, 10**6),
        "checkpoint_every": (1, 10**9),
        "checkpoint_keep": (1, 10**4),
        "max_consecutive_skips": (0, 10**6),
    },
    "parallel": {"timeout": (1, 10**6), "heartbeat_timeout": (3, 10**6)},
    "objective": {"timestep_samples": (1, 1_000)},
    "evaluate": {"samples": (100, 10**6), "teacher_steps": (1, 10**4)},
}
"""The whole numbers that a configuration may hold, by section and name."""


@dataclass(kw_only=True)
class TeacherConfig:
    """What to distill."""

    name: str = "digits"
    """A registered teacher: see 'pdmd teachers'."""
    guidance: tuple[float, ...] = (1.0,)
    """Classifier-free guidance scale, 1 is none: one number, or one per network of the teacher."""
    arguments: dict[str, bool | int | float | str] = field(default_factory=dict)
    """Passed to the teacher by name, such as dim and modes for the mixture."""
    schedule: str = ""
    """Put it on this schedule, and the student with it: rectified_flow, cosine or linear; its own
    by default."""
    schedule_end: Literal["noise", "teacher"] = "noise"
    """Where that schedule ends: at pure noise, or at the teacher's noisiest level."""
    plugins: tuple[str, ...] = ()
    """Python modules to import first; they may register teachers."""

    def build(self) -> Teacher:
        """Makes the teacher, guided if asked."""
        self.check_name()
        try:
            teacher = teachers[self.name](**self.arguments)
        except (TypeError, ValueError, OverflowError, RuntimeError, MemoryError) as error:
            raise ValueError(f"teacher.arguments do not fit {self.name!r}: {error}") from error
        return on_schedule(guided(teacher, self.guidance), self.schedule, self.schedule_end)

    def check_name(self) -> None:
        """Imports the plugins and looks the teacher up."""
        import_plugins(self.plugins)
        if self.name not in teachers:
            teachers[self.name]
        if self.schedule and self.schedule not in schedules:
            schedules[self.schedule]
        if not self.guidance:
            raise ValueError("teacher.guidance is empty; give one number, 1 for none")
        for scale in self.guidance:
            if not math.isfinite(scale):
                raise ValueError(f"teacher.guidance must be finite, got {scale}")


@dataclass(kw_only=True)
class NetworkConfig:
    """The experts' network where the teacher has no weights, first taught by flow matching."""

    name: str = "mlp"
    """A registered network."""
    width: int = 64
    """Hidden width."""
    depth: int = 3
    """Hidden layers."""
    updates: int = 3000
    """Flow-matching updates before distillation."""


@dataclass(kw_only=True)
class PlanConfig:
    """How the noise range is cut."""

    phases: int = 4
    """Number of phases."""
    steps: tuple[int, ...] = (1,)
    """Steps in each phase: one number for all, or one per phase."""
    timesteps: tuple[float, ...] = ()
    """Times from 1 to 0, instead of equal steps; 'phases' is then ignored."""
    shift: float = 1.0
    """Above 1, more of the plan lies near noise."""
    score_range: Literal["nested", "disjoint"] = "nested"
    """Where scores are compared: (t_k, 1) as in the paper, or (t_k, t_{k-1})."""

    def build(self) -> PhasePlan:
        """Makes the plan."""
        score_range = {"nested": Nested(), "disjoint": Disjoint()}[self.score_range]
        if not self.steps:
            raise ValueError("plan.steps is empty; give one number, or one per phase")
        steps = self.steps[0] if len(self.steps) == 1 else self.steps
        if self.timesteps:
            return PhasePlan.from_timesteps(
                self.timesteps, steps=steps, shift=self.shift, score_range=score_range
            )
        return PhasePlan.uniform(
            self.phases, steps=steps, shift=self.shift, score_range=score_range
        )


@dataclass(kw_only=True)
class ObjectiveConfig:
    """What generator and fake score minimise."""

    weight: str = "normalised"
    """Distribution matching: normalised, exact_kl or posterior."""
    weighting: str = "clamped"
    """Score matching: clamped, ratio, epsilon, inverse_variance or none."""
    times: Literal["uniform", "log_snr"] = "uniform"
    """How times are drawn in the score range."""
    margin: float = 0.02
    """Share of the score range left out at its ends."""
    timestep_samples: int = 1
    """Times and noises at which a sample is compared; more lower the step's variance."""

    def build(self) -> tuple[DistributionMatching, SubintervalScoreMatching]:
        """Makes the two objectives."""
        times = {"uniform": UniformTimes, "log_snr": LogSnrTimes}[self.times](self.margin)
        return (
            DistributionMatching(
                score_difference_weightings[self.weight](),
                times,
                timestep_samples=self.timestep_samples,
            ),
            SubintervalScoreMatching(weightings[self.weighting](), times),
        )


@dataclass(kw_only=True)
class TrainConfig:
    """The loop."""

    updates: int = 200
    """Updates of each expert."""
    share: tuple[float, ...] = ()
    """How the updates of all phases are shared out over them; equally by default."""
    fake_updates: int = 5
    """Fake-score updates before each of the expert's (TTUR)."""
    fake_error_tolerance: float = 0.0
    """Above 0, as many fake updates as keep the fake score's relative error below it, at most
    fake_updates."""
    batch_size: int = 128
    """Samples in each rollout."""
    accumulate: int = 1
    """Rollouts whose gradients make one update of the expert."""
    fake_updates_per_rollout: int = 1
    """Fake updates that one rollout serves; above 1 the expert's own serves the first of them."""
    phase_inputs: Literal["fresh", "buffer"] = "fresh"
    """Make the states at which rollouts start afresh, or in large batches kept in a ring."""
    buffer_batches: int = 0
    """Batches that the ring holds at the most; by default as many as a phase needs."""
    buffer_uses: int = 1
    """How often the ring hands out a batch before it is replaced."""
    buffer_together: int = 4
    """Batches of the ring that pass through a frozen expert together."""
    buffer_folder: str = ""
    """Keep the ring in memory-mapped files in this local folder; in memory by default."""
    lr: float = 5e-4
    """The expert's learning rate."""
    fake_lr: float = 1e-3
    """The fake score's learning rate."""
    ema: float = 0.99
    """Decay of the weight average that becomes the expert."""
    max_grad_norm: float = 10.0
    """Largest gradient norm."""
    init: Literal["teacher", "previous"] = "teacher"
    """Where each expert starts."""
    expert: str = "ode"
    """How an expert walks through its phase: ode or renoising."""
    truncation: Literal["stochastic", "full"] = "stochastic"
    """Gradient through one random step of a phase, or through all."""
    seed: int = 0
    """Seed of every draw."""
    max_consecutive_skips: int = 3
    """Updates that may be refused in a row, for a loss or gradient that is not finite."""
    checkpoint_every: int = 50
    """Updates between checkpoints."""
    checkpoint_keep: int = 2
    """Checkpoints to keep, the newest ones."""
    checkpoint_folder: str = ""
    """Where checkpoints go: a folder or a URL such as s3://bucket/run; OUT/checkpoint by
    default."""
    checkpoint_async: bool = False
    """Write checkpoints in the background while training goes on."""

    def recipes(self) -> tuple[AdamRecipe, AdamRecipe]:
        """Makes the two optimizers' recipes."""
        return AdamRecipe(lr=self.lr), AdamRecipe(lr=self.fake_lr, decay_from=1.0)

    def updates_of(self, plan: PhasePlan) -> list[int]:
        """Returns the updates of every phase."""
        if self.share and len(self.share) != len(plan):
            raise ValueError(
                f"train.share has {len(self.share)} numbers for {len(plan)} phases; give one for "
                "each"
            )
        return split_updates(self.updates * len(plan), self.share or (1.0,) * len(plan))

    def build_fake_updates(self) -> FakeUpdates:
        """Makes what decides the number of fake updates."""
        if self.fake_error_tolerance:
            least = min(1, self.fake_updates)
            return AdaptiveUpdates(self.fake_error_tolerance, least=least, most=self.fake_updates)
        return FixedUpdates(self.fake_updates)

    def build_phase_inputs(self, plan: PhasePlan) -> PhaseInputs:
        """Makes where rollouts start."""
        if self.phase_inputs == "fresh":
            return FreshPhaseInputs()
        rollouts = max(self.updates_of(plan)) * (self.fake_updates + self.accumulate)
        batches = self.buffer_batches or -(-rollouts // self.buffer_uses)
        return PhaseInputBuffer(
            batches,
            uses=self.buffer_uses,
            together=self.buffer_together,
            folder=self.buffer_folder or None,
        )

    def build_truncation(self) -> StochasticTruncation | FullGradient:
        """Makes the truncation."""
        return StochasticTruncation() if self.truncation == "stochastic" else FullGradient()


@dataclass(kw_only=True)
class LoraConfig:
    """Low-rank adapters over the teacher's frozen weights, in place of whole networks."""

    rank: int = 0
    """Rank of the experts' adapters; 0 trains full weights. The paper takes 64."""
    alpha: float = 8.0
    """The experts' change of weights is multiplied by alpha / rank."""
    fake_rank: int = 0
    """Rank of the fake score's adapter; 0 trains full weights, as the paper does."""
    fake_alpha: float = 8.0
    """The same for the fake score's."""
    targets: tuple[str, ...] = ()
    """Linear layers to adapt, such as to_q to_v; those in the network's blocks by default."""

    def build(self) -> tuple[LowRank | None, LowRank | None]:
        """Makes the experts' and the fake score's adapters, ``None`` for full weights.

        Raises:
            ValueError: If a value is out of its range, or says something of an adapter that there
                is not.
        """
        unset = LoraConfig()
        for name, rank, ranks in (
            ("alpha", "rank", self.rank),
            ("fake_alpha", "fake_rank", self.fake_rank),
            ("targets", "rank", self.rank or self.fake_rank),
        ):
            if not ranks and getattr(self, name) != getattr(unset, name):
                raise ValueError(
                    f"lora.{name} = {getattr(self, name)!r} says nothing with lora.{rank} = 0, "
                    f"which trains full weights; set lora.{rank}, or leave lora.{name} out"
                )
        pairs = ((self.rank, self.alpha), (self.fake_rank, self.fake_alpha))
        generator, fake = (
            LowRank(rank=rank, alpha=alpha, targets=self.targets) if rank else None
            for rank, alpha in pairs
        )
        return generator, fake


@dataclass(kw_only=True)
class EvaluateConfig:
    """The comparison with the teacher."""

    samples: int = 2000
    """Samples of each method."""
    teacher_steps: int = 50
    """Steps of the teacher's own sampling."""
    seed: int = 1234
    """Seed of every draw."""


@dataclass(kw_only=True)
class DistillConfig:
    """Distills a teacher into a few-step mixture of experts and reports what came out."""

    out: str = ""
    """The run folder; runs/NAME by default."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def check(self) -> None:
        """Builds everything that is quick to build, for its errors.

        Raises:
            ValueError: Naming the value and the remedy.
        """
        self.teacher.check_name()
        if self.network.name not in networks:
            networks[self.network.name]
        for section, ranges in RANGES.items():
            for name, (low, high) in ranges.items():
                value = getattr(getattr(self, section), name)
                if not low <= value <= high:
                    raise ValueError(
                        f"{section}.{name} is from {low:,} to {high:,}, got {short(value)}"
                    )
        plan = self.plan.build()
        generator, fake = self.objective.build()
        for phase in plan:
            generator.times.bounds(phase)
            fake.times.bounds(phase)
        self.lora.build()
        self.train.recipes()
        self.train.updates_of(plan)
        self.train.build_fake_updates()
        if self.train.expert not in experts:
            experts[self.train.expert]
        if not 0 <= self.train.ema < 1:
            raise ValueError(f"train.ema is in [0, 1), got {self.train.ema}")
        if not self.train.max_grad_norm > 0:
            raise ValueError(
                f"train.max_grad_norm must be positive, got {self.train.max_grad_norm}"
            )
        for section, seed in (("train", self.train.seed), ("evaluate", self.evaluate.seed)):
            if not 0 <= seed < 2**63:
                raise ValueError(f"{section}.seed is in [0, 2^63), got {short(seed)}")


def short(value: object) -> str:
    """Returns a value as text, cut where it has very many digits."""
    text = str(value)
    return text if len(text) <= 40 else f"{text[:20]}... ({len(text)} digits)"
