"""The section ``[train]``: the training loop of every phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

from pdmd.cli.config_sections.optimizer import OptimizerConfig
from pdmd.cli.config_sections.phase_settings import in_phase, settings_by_phase
from pdmd.cli.config_sections.types import TypesConfig
from pdmd.cli.values import Terms, duration, short
from pdmd.distillation.adapters import LowRank
from pdmd.distillation.experts import FullGradient, StochasticTruncation, Truncation, experts
from pdmd.distillation.initializers import (
    CopyInitializer,
    FromNetwork,
    FromPrevious,
    Initializer,
    LowRankRoles,
    PerStep,
    initializers,
)
from pdmd.distillation.phases import PhasePlan
from pdmd.training.checkpoints.intervals import Interval
from pdmd.training.checkpoints.time_limits import TimeLimit
from pdmd.training.curriculum import Curriculum, Joint, Progressive, split_updates
from pdmd.training.fake_scores import (
    AdaptiveUpdates,
    FakeScores,
    FakeUpdates,
    FixedUpdates,
    OneFakeScore,
    OneFakeScorePerExitStep,
)
from pdmd.training.optimizers import AdamRecipe
from pdmd.training.phase_inputs import FreshPhaseInputs, PhaseInputBuffer, PhaseInputs
from pdmd.training.phase_settings import setting_of

__all__ = ["TrainConfig"]

CURRICULA: Mapping[str, Curriculum] = {
    "progressive": Progressive(),
    "joint": Joint(),
    "shared": Joint(shared=True),
}
"""Which phases train together, by name."""

FAKE_SCORES: Mapping[str, FakeScores] = {
    "one": OneFakeScore(),
    "per_exit_step": OneFakeScorePerExitStep(),
}
"""How many fake scores a phase has, by name."""


@dataclass(kw_only=True)
class TrainConfig:
    """The training loop of every phase."""

    updates: int = 200
    """Updates of each expert."""
    update_shares: tuple[float, ...] = ()
    """Relative numbers of updates, one per phase; equal by default."""
    curriculum: Literal["progressive", "joint", "shared"] = "progressive"
    """Phases train one after the other, jointly, or jointly with one shared network."""
    fake_updates: int = 5
    """Fake-score updates per generator update (TTUR)."""
    fake_error_tolerance: float = 0.0
    """Above 0, stop the fake updates once the relative fake-score error is below it."""
    fake_scores: Literal["one", "per_exit_step"] = "one"
    """Fake scores of a phase: one, or one per exit step of the rollout."""
    batch_size: int = 128
    """Samples in each rollout."""
    accumulate: int = 1
    """Rollouts whose gradients are accumulated for one generator update."""
    fake_accumulate: int = 1
    """Rollouts whose gradients are accumulated for one fake-score update."""
    fake_updates_per_rollout: int = 1
    """Fake-score updates that reuse one rollout, the generator's first."""
    phase_inputs: Literal["fresh", "buffer"] = "fresh"
    """Generate the inputs of a phase for every rollout, or in large batches kept in a buffer."""
    buffer_batches: int = 0
    """Capacity of the phase-input buffer in batches; 0 for as many as a phase needs."""
    buffer_uses: int = 1
    """How often a batch of the buffer is used before it is replaced."""
    buffer_chunk: int = 4
    """Batches of the buffer that pass through a frozen expert at once."""
    buffer_folder: str = ""
    """Keep the buffer in memory-mapped files in this local folder; in memory by default."""
    lr: float = 5e-4
    """Learning rate of the experts."""
    fake_lr: float = 1e-3
    """Learning rate of the fake scores."""
    generator: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            lr_decay={"name": "linear", "start": 0.5, "final": 0.02}
        )
    )
    fake: OptimizerConfig = field(default_factory=OptimizerConfig)
    phase: Terms = ()
    """Settings that differ in some phases, counted from 1: lr, fake_lr, updates, fake_updates,
    fake_error_tolerance, generator and fake, for example {phases = [2], lr = 5e-5}. In a TOML file
    a table is [[train.phase]]."""
    types: TypesConfig = field(default_factory=TypesConfig)
    adam_bits: Literal[32, 8] = 32
    """Bits of the optimizers' moments; 8 bits need torchao."""
    ema: float = 0.99
    """Decay of the weight average that becomes the expert."""
    max_grad_norm: float = 10.0
    """Gradients are clipped to this norm."""
    initializer: str = "teacher"
    """Where each expert starts: teacher, previous, or per_step for a network of each step."""
    expert: str = "ode"
    """How an expert steps through its phase: ode or renoising."""
    truncation: Literal["stochastic", "full"] = "stochastic"
    """Gradient through one random step of a phase, or through all."""
    seed: int = 0
    """Seed of the run."""
    max_consecutive_skips: int = 3
    """Updates in a row that may be skipped because a loss or gradient is not finite."""
    checkpoint_minutes: float = 15.0
    """Minutes between checkpoints within a phase; 0 for none."""
    checkpoint_every: int = 0
    """Updates between checkpoints within a phase; 0 for none."""
    checkpoint_keep: int = 2
    """Number of newest checkpoints to keep; the last one stays after the run, unless this is 0."""
    checkpoint_folder: str = ""
    """Folder or URL of checkpoints, for example s3://bucket/run; OUT/checkpoint by default."""
    checkpoint_async: bool = False
    """Write checkpoints in the background while training continues."""
    save_before: str = ""
    """Write a checkpoint and stop this long before the job's end, such as 10m."""
    time_limit: str = ""
    """Time from the start of the run to the job's end, such as 24h; by default Slurm's."""

    def check(self, plan: PhasePlan) -> None:
        """Builds everything that is quick to build, for its errors.

        Args:
            plan: The phase plan.

        Raises:
            ValueError: If a value is out of its range.
        """
        generators, fakes = self.recipes(plan)
        numbers = self.build_fake_updates(plan)
        for group in self.build_curriculum().groups(plan):
            setting_of(generators, group, "the optimizer of train.generator")
            setting_of(fakes, group, "the optimizer of train.fake")
            setting_of(numbers, group, "train.fake_updates")
        self.updates_of(plan)
        if self.expert not in experts:
            experts[self.expert]
        if self.initializer not in initializers:
            initializers[self.initializer]
        if not 0 <= self.ema < 1:
            raise ValueError(f"train.ema is in [0, 1), got {self.ema}")
        if not self.max_grad_norm > 0:
            raise ValueError(f"train.max_grad_norm must be positive, got {self.max_grad_norm}")
        self.build_interval()
        self.build_time_limit(0.0)
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"train.seed is in [0, 2^63), got {short(self.seed)}")

    def phases(self, plan: PhasePlan) -> list[Self]:
        """Returns the section as it is in each phase.

        Raises:
            ValueError: If a table of ``[[train.phase]]`` does not fit.
        """
        settings = settings_by_phase(self, len(plan))
        return [in_phase(self, settings.get(phase.number, {})) for phase in plan]

    def recipes(self, plan: PhasePlan) -> tuple[Sequence[AdamRecipe], Sequence[AdamRecipe]]:
        """Returns the optimizer recipes of the experts and of the fake scores, by phase."""
        phases = self.phases(plan)
        return (
            [p.generator.build(p.lr, p.adam_bits, "train.generator") for p in phases],
            [p.fake.build(p.fake_lr, p.adam_bits, "train.fake") for p in phases],
        )

    def updates_of(self, plan: PhasePlan) -> list[int]:
        """Returns the number of updates of each phase."""
        settings = settings_by_phase(self, len(plan))
        if self.update_shares and len(self.update_shares) != len(plan):
            raise ValueError(
                f"train.update_shares has {len(self.update_shares)} numbers for {len(plan)} "
                "phases; give one per phase"
            )
        shares = self.update_shares or (1.0,) * len(plan)
        split = split_updates(self.updates * len(plan), shares)
        return [
            settings.get(phase.number, {}).get("updates", number)
            for phase, number in zip(plan, split, strict=True)
        ]

    def build_curriculum(self) -> Curriculum:
        """Returns the curriculum."""
        return CURRICULA[self.curriculum]

    def build_fake_scores(self) -> FakeScores:
        """Returns the assignment of fake scores to rollouts."""
        return FAKE_SCORES[self.fake_scores]

    def build_fake_updates(self, plan: PhasePlan) -> FakeUpdates | Sequence[FakeUpdates]:
        """Builds the rule for the number of fake updates: one, or one per phase."""
        phases = self.phases(plan)
        if len({(p.fake_updates, p.fake_error_tolerance) for p in phases}) == 1:
            return phases[0]._fake_updates()
        return [p._fake_updates() for p in phases]

    def _fake_updates(self) -> FakeUpdates:
        if self.fake_error_tolerance:
            least = min(1, self.fake_updates)
            return AdaptiveUpdates(self.fake_error_tolerance, least=least, most=self.fake_updates)
        return FixedUpdates(self.fake_updates)

    def build_phase_inputs(self, plan: PhasePlan) -> PhaseInputs:
        """Builds the source of phase inputs."""
        if self.phase_inputs == "fresh":
            return FreshPhaseInputs()
        cycles = zip(self.updates_of(plan), self.phases(plan), strict=True)
        rollouts = max(n * (p.fake_updates * p.fake_accumulate + p.accumulate) for n, p in cycles)
        batches = self.buffer_batches or -(-rollouts // self.buffer_uses)
        return PhaseInputBuffer(
            batches,
            uses=self.buffer_uses,
            together=self.buffer_chunk,
            folder=self.buffer_folder or None,
        )

    def build_interval(self) -> Interval:
        """Builds the interval between checkpoints."""
        return Interval(updates=self.checkpoint_every, minutes=self.checkpoint_minutes)

    def build_time_limit(self, started: float) -> TimeLimit | None:
        """Builds the time limit of the job; ``None`` without one.

        Args:
            started: When the run started, in seconds of Unix time.

        Raises:
            ValueError: If a duration cannot be read, or the job's end is not known.
        """
        if not self.save_before:
            if self.time_limit:
                raise ValueError(
                    f"train.time_limit = {self.time_limit!r} needs train.save_before, how long "
                    "before it to stop, such as 10m"
                )
            return None
        before = duration(self.save_before, "train.save_before")
        if not self.time_limit:
            return TimeLimit.of_job(before)
        limit = duration(self.time_limit, "train.time_limit")
        if before >= limit:
            raise ValueError(
                f"train.save_before = {self.save_before!r} leaves nothing of train.time_limit = "
                f"{self.time_limit!r}"
            )
        return TimeLimit(end=started + limit, before=before)

    def build_truncation(self) -> Truncation:
        """Builds the truncation of rollouts."""
        return StochasticTruncation() if self.truncation == "stochastic" else FullGradient()

    def build_initializer(
        self,
        origin: CopyInitializer | None = None,
        adapters: tuple[LowRank | None, LowRank | None] = (None, None),
    ) -> Initializer:
        """Builds the initializer of a phase's networks.

        Args:
            origin: Where networks start instead of at a teacher: for one without weights, or for
                a student of another network.
            adapters: Adapters of experts and fake scores; ``None`` for full weights.

        Raises:
            ValueError: If experts are to start at the previous one and the teacher has no weights.
        """
        initializer = initializers[self.initializer]()
        if isinstance(initializer, FromPrevious) and isinstance(origin, FromNetwork):
            start: Initializer = FromPrevious(origin)
        elif isinstance(initializer, PerStep):
            start = origin or initializer.inner
        elif origin is not None and self.initializer != "teacher":
            raise ValueError(
                f"train.initializer = {self.initializer!r} needs a teacher with weights; remove "
                "it, or use 'teacher' or 'per_step'"
            )
        else:
            start = origin or initializer
        if any(adapters):
            if not isinstance(start, CopyInitializer):
                raise ValueError(
                    f"train.initializer = {self.initializer!r} cannot start adapters; set "
                    "lora.rank = 0 and lora.fake_rank = 0, or use 'teacher' or 'previous'"
                )
            start = LowRankRoles(*adapters, start=start, seed=self.seed)
        return PerStep(start) if isinstance(initializer, PerStep) else start
