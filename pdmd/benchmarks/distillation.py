"""Distillation benchmarks: every scheme on the exact mixture, and on digits.

Methods differ only in their :class:`~pdmd.benchmarks.schemes.Scheme`. They share the initial
network, the number of generator updates (split over the phases), the batch size, the optimizers
and, but where a benchmark states others in its ``rates``, the learning rates.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, TypeAlias

import torch

from pdmd.benchmarks.base import Benchmark
from pdmd.benchmarks.memory import rollout_mib
from pdmd.benchmarks.schemes import SCHEMES, Scheme, shifted_plan
from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.sampling import sample_ode, sample_sde
from pdmd.distillation.distill import distill
from pdmd.distillation.initializers import FromDenoiser, FromTeacher, Initializer
from pdmd.distillation.phases import PhasePlan
from pdmd.distillation.sampling import sample
from pdmd.distillation.students import Student
from pdmd.evaluation.evaluator import Evaluator
from pdmd.evaluation.evaluators import DigitsEvaluator, MixtureEvaluator
from pdmd.evaluation.figures import data_uri, image_grid, vector_scatter
from pdmd.teachers.base import Teacher, networks
from pdmd.teachers.guided import Guided
from pdmd.teachers.mixture import MixtureTeacher
from pdmd.teachers.packaged.digits import DigitsTeacher
from pdmd.teachers.packaged.pretraining import pretrained_network
from pdmd.training.curriculum import split_updates
from pdmd.training.expert_training import ExpertTraining
from pdmd.training.fake_scores import FakeScoreTraining
from pdmd.training.learning_rates import Constant
from pdmd.training.monitoring.accounting import Account
from pdmd.training.optimizers import AdamRecipe
from pdmd.training.rollouts import Rollouts
from pdmd.training.session import Session
from pdmd.typing import Condition, Latents, labels_of

__all__ = ["GUIDED_METHODS", "DigitsBenchmark", "DistillationBenchmark", "MixtureBenchmark"]

TEACHER_ROWS = ("teacher", "teacher_euler_4")
STOCHASTIC = "teacher_stochastic"
MORE_STEPS = 3
"""Stochastic steps for a step of the teacher, since their error is larger."""

GUIDED_METHODS = (
    *TEACHER_ROWS,
    STOCHASTIC,
    "one_step",
    "vanilla",
    "vanilla_experts",
    "sgts",
    "sgts_ode",
    "sgts_per_exit_step",
    "phased",
    "phased_2x2",
    "phased_2x2_full",
    "phased_1x3_full",
    "phased_disjoint",
    "phased_shared",
    "phased_lora",
    "phased_late",
    "phased_buffer",
    "phased_buffer_reuse_adaptive",
    "phased_fast_fake",
)
"""The methods that are compared on guided teachers of images."""

Draw: TypeAlias = Callable[..., Latents]
"""Maps a condition, a ``batch`` and a ``generator`` to samples."""


class DistillationBenchmark(Benchmark):
    """A teacher, an initializer that all methods share, and an evaluator."""

    # adapters are for networks of some width
    methods: Sequence[str] = tuple(m for m in (*TEACHER_ROWS, *SCHEMES) if m != "phased_lora")
    updates: int
    fake_updates: int
    batch_size = 128
    samples: int
    teacher_steps: int
    shift = 1.0  # of the times of plans and of the teacher's steps
    optimizers: tuple[AdamRecipe, AdamRecipe]
    rates: Mapping[str, tuple[float, float]] = MappingProxyType({})
    """Learning rates of generator and fake score of the methods that need others, unless the
    options state rates."""

    @abstractmethod
    def teacher(self) -> Teacher:
        """Returns the teacher."""

    @abstractmethod
    def start(self, width_factor: float) -> Initializer:
        """Returns the shared initializer, for networks ``width_factor`` times as wide."""

    @abstractmethod
    def evaluator(self, teacher: Teacher, condition: Condition, seed: int) -> Evaluator:
        """Returns the evaluator of samples of these conditions."""

    @abstractmethod
    def picture(self, teacher: Teacher, x: Latents, condition: Condition) -> Any:
        """Draws samples, as a matplotlib figure."""

    def descriptions(self) -> dict[str, str]:
        return {
            "teacher": f"The teacher in {self.teacher_steps} steps.",
            "teacher_euler_4": "The teacher in 4 Euler steps.",
            STOCHASTIC: f"The teacher in {MORE_STEPS * self.teacher_steps} stochastic steps: the "
            "law of its predictions as scores, at which distribution matching aims.",
            **{name: scheme.summary for name, scheme in SCHEMES.items()},
        }

    def run(self, method: str, seed: int) -> tuple[dict[str, Any], str | None]:
        teacher, samples = self.teacher(), self.config.samples or self.samples
        condition = self.condition(teacher)
        measure = self.evaluator(teacher, condition, self.measure_seed)
        generator = torch.Generator().manual_seed(10_000 + seed)
        draw: Draw
        if method in self.samplers:
            student, (sampler, steps) = None, self.samplers[method]
            cost: dict[str, Any] = {"forwards": 0, "cpu_seconds": 0.0, "saved_mib": 0.0}
            nfe, draw = (
                steps * teacher.evaluations,
                partial(sampler, teacher, steps=steps, times=self.times(steps)),
            )
        else:
            student, cost = self.distill(self.scheme(method), teacher, seed)
            nfe, draw = student.plan.nfe, partial(sample, student)
        x = draw(condition, batch=samples, generator=generator)
        picture = data_uri(self.picture(teacher, x, condition), dpi=60)
        further = self.further(teacher, student, draw, generator)
        return {**measure(x), **further, "nfe": nfe, **cost}, picture

    @property
    def samplers(self) -> dict[str, tuple[Callable[..., Latents], int]]:
        """How the teacher is sampled in its rows: the sampler, and the number of steps."""
        return {
            "teacher": (sample_ode, self.teacher_steps),
            "teacher_euler_4": (sample_ode, 4),
            STOCHASTIC: (sample_sde, MORE_STEPS * self.teacher_steps),
        }

    def scheme(self, method: str) -> Scheme:
        """Returns a method's scheme, at the benchmark's rates for it or those of options."""
        scheme = SCHEMES[method]
        stated = scheme.learning_rates or self.config.lr or self.config.fake_lr
        own = None if stated else self.rates.get(method)
        return replace(scheme, learning_rates=own) if own else scheme

    def plan(self, scheme: Scheme) -> PhasePlan:
        """Returns the plan of a scheme, shifted as the teacher's steps."""
        plan = scheme.plan()
        return plan if self.shift == 1 else shifted_plan(plan, self.shift)

    def times(self, steps: int) -> tuple[float, ...] | None:
        """Returns the times of the teacher's steps, or ``None`` for equal steps."""
        return None if self.shift == 1 else PhasePlan.uniform(steps, shift=self.shift).timesteps

    def further(
        self,
        teacher: Teacher,
        student: Student | None,
        draw: Draw,
        generator: torch.Generator,
    ) -> dict[str, float]:
        """Returns metrics of other samples than those that are evaluated.

        Args:
            teacher: The teacher.
            student: The student, or ``None`` for a row of the teacher.
            draw: Samples the teacher or the student.
            generator: The source of randomness.
        """
        return {}

    @property
    def measure_seed(self) -> int:
        """The seed of the reference samples."""
        return 1234 + self.config.data_seed

    def condition(self, teacher: Teacher) -> Condition:
        """Returns the conditions that every method is sampled with."""
        samples = self.config.samples or self.samples
        prompts = [teacher.prompts[i % len(teacher.prompts)] for i in range(samples)]
        return teacher.encode(prompts)

    def distill(
        self, scheme: Scheme, teacher: Teacher, seed: int
    ) -> tuple[Student, dict[str, Any]]:
        """Distills with a scheme and returns the student and the cost of training."""
        plan, config, account = self.plan(scheme), self.config, Account()
        batch = config.batch_size or self.batch_size
        total = round((config.updates or self.updates) * scheme.update_factor)
        if config.forwards:
            total = round(config.forwards / self._forwards_per_update(scheme, teacher))
        started = time.process_time()
        student = self._train(scheme, teacher, seed, total, batch, account)
        seconds = time.process_time() - started
        init = scheme.init(self.start(scheme.width_factor))
        cost = {
            "forwards": round(account.forward_equivalents / batch),
            "cpu_seconds": round(seconds, 2),
            "saved_mib": rollout_mib(scheme, plan, init, teacher, batch),
        }
        return student, cost

    def _forwards_per_update(self, scheme: Scheme, teacher: Teacher) -> float:
        """Counts the cost of a generator update with its fake updates, in a short training."""
        account, updates, batch = Account(), 8 * len(scheme.plan()), 2
        self._train(scheme, teacher, 0, updates, batch, account)
        return account.forward_equivalents / batch / updates

    def _train(
        self,
        scheme: Scheme,
        teacher: Teacher,
        seed: int,
        total: int,
        batch: int,
        account: Account,
    ) -> Student:
        if isinstance(teacher, Guided):
            own = scheme.guidance_interval
            teacher = Guided(teacher.teacher, teacher.scales, interval=own)
        plan, config, efficiency = self.plan(scheme), self.config, scheme.efficiency
        most = config.fake_updates or self.fake_updates
        updates = split_updates(total, scheme.update_shares or (1.0,) * len(plan))
        optimizer, fake_optimizer = self.optimizers
        lr, fake_lr = scheme.learning_rates or (0.0, 0.0)
        lr, fake_lr = lr or config.lr, fake_lr or config.fake_lr or fake_optimizer.lr
        return distill(
            teacher,
            plan,
            generator_objective=scheme.generator_objective(),
            fake_objective=scheme.fake_objective(),
            updates=updates,
            experts=ExpertTraining(
                initializer=scheme.init(self.start(scheme.width_factor)),
                expert=scheme.expert,
                curriculum=scheme.curriculum,
                optimizer=replace(optimizer, lr=lr or optimizer.lr),
                accumulate=scheme.accumulate,
            ),
            rollouts=Rollouts(
                batch_size=batch,
                truncation=scheme.truncation,
                phase_inputs=efficiency.phase_inputs(max(updates) * (most + scheme.accumulate)),
            ),
            fake_scores=FakeScoreTraining(
                updates=efficiency.fake_updates(most),
                updates_per_rollout=efficiency.fake_updates_per_rollout,
                scores=scheme.fake_scores,
                optimizer=replace(fake_optimizer, lr=fake_lr * scheme.fake_rate_factor(most)),
            ),
            session=Session(account=account),
            seed=seed,
            progress=False,
            check_score=False,
        )


class MixtureBenchmark(DistillationBenchmark):
    """An exact class-conditional mixture, distilled into MLPs that are deliberately too small."""

    updates, fake_updates, samples, teacher_steps = 800, 5, 6000, 100
    optimizers = (AdamRecipe(lr=5e-4), AdamRecipe(lr=1e-3, decay=Constant()))

    def teacher(self) -> MixtureTeacher:
        c = self.config
        return MixtureTeacher.random(dim=c.dim, classes=c.classes, modes=c.modes, seed=c.data_seed)

    def prepare(self, progress: bool, methods: Sequence[str] = ()) -> None:
        for width_factor in sorted({scheme.width_factor for scheme in SCHEMES.values()}):
            self._network(width_factor, progress)

    def start(self, width_factor: float) -> Initializer:
        return FromDenoiser(self._network(width_factor, False))

    def evaluator(self, teacher: Teacher, condition: Condition, seed: int) -> Evaluator:
        assert isinstance(teacher, MixtureTeacher)
        return MixtureEvaluator(teacher, condition, self.config.samples or self.samples, seed)

    def picture(self, teacher: Teacher, x: Latents, condition: Condition) -> Any:
        return vector_scatter({"": x[:1500]}, labels_of(condition)[:1500])

    def _network(self, width_factor: float, progress: bool) -> Denoiser:
        from safetensors.torch import load_file, save_file

        arguments = {
            "dim": self.config.dim,
            "classes": self.config.classes,
            "width": round(64 * width_factor),
        }
        teacher = self.teacher()
        path = self.folder / f"start_{width_factor:g}.safetensors"
        if path.exists():
            network = networks["mlp"](**arguments, schedule=teacher.schedule)
            network.load_state_dict(load_file(path))
            return network
        network = pretrained_network(
            teacher, "mlp", arguments, updates=3000, seed=0, progress=progress
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".partial")
        save_file(network.state_dict(), draft)
        draft.replace(path)
        return network


class DigitsBenchmark(DistillationBenchmark):
    """The digits teacher, trained on real images."""

    # the packaged weights have one width, and no scheme is tuned on digits
    methods = tuple(
        m for m in DistillationBenchmark.methods if m not in ("vanilla_wide", "phased_tuned")
    )
    updates, fake_updates, samples, teacher_steps = 500, 2, 6000, 50
    optimizers = (AdamRecipe(lr=3e-4), AdamRecipe(lr=6e-4, decay=Constant()))

    def teacher(self) -> DigitsTeacher:
        return DigitsTeacher.from_package()

    def start(self, width_factor: float) -> Initializer:
        return FromTeacher()

    def prepare(self, progress: bool, methods: Sequence[str] = ()) -> None:
        teacher = self.teacher()
        self.evaluator(teacher, self.condition(teacher), self.measure_seed)

    def evaluator(self, teacher: Teacher, condition: Condition, seed: int) -> Evaluator:
        from safetensors.torch import load_file, save_file

        assert isinstance(teacher, DigitsTeacher)
        path = self.folder / "reference.safetensors"
        if path.exists():
            reference = load_file(path)["x"]
        else:
            reference = sample_ode(
                teacher,
                condition,
                steps=self.teacher_steps,
                generator=torch.Generator().manual_seed(seed),
            )
            self.folder.mkdir(parents=True, exist_ok=True)
            draft = path.with_suffix(".partial")
            save_file({"x": reference}, draft)
            draft.replace(path)
        return DigitsEvaluator(teacher, condition, reference, seed)

    def picture(self, teacher: Teacher, x: Latents, condition: Condition) -> Any:
        assert isinstance(teacher, DigitsTeacher)
        return image_grid(teacher.decode(x[:100]), columns=10)
