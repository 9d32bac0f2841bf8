"""The fashion benchmark: every scheme on a guided class-conditional teacher of natural images.

Fashion-MNIST has several kinds of clothes in each of its ten classes, and texture. Samples are
compared with the guided teacher's own and with the pictures of the test, which neither the teacher
nor the evaluator's classifier was trained on. Only this comparison needs the data set.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch

from pdmd.benchmarks.base import BenchConfig
from pdmd.benchmarks.boundary_errors import boundary_errors
from pdmd.benchmarks.distillation import GUIDED_METHODS, DistillationBenchmark, Draw
from pdmd.benchmarks.references import reference_draws
from pdmd.distillation.initializers import FromTeacher, Initializer
from pdmd.distillation.sampling import trajectory
from pdmd.distillation.students import Student
from pdmd.evaluation.evaluator import Evaluator
from pdmd.evaluation.fashion_evaluator import FashionEvaluator
from pdmd.evaluation.figures import image_grid
from pdmd.teachers.base import Teacher
from pdmd.teachers.guided import Guided, unguided
from pdmd.teachers.packaged.fashion import FashionTeacher
from pdmd.teachers.packaged.fashion_images import CLASSES, FashionImages
from pdmd.training.learning_rates import Constant
from pdmd.training.optimizers import AdamRecipe
from pdmd.typing import Condition, Latents

__all__ = ["FashionBenchmark"]

GUIDANCE = 1.5


class FashionBenchmark(DistillationBenchmark):
    """The fashion teacher under guidance, and the test pictures of Fashion-MNIST."""

    methods = GUIDED_METHODS
    updates, fake_updates, batch_size, samples, teacher_steps = 120, 2, 64, 1000, 24
    # By the trials of docs/evidence/guided_search.py.
    optimizers = (AdamRecipe(lr=3e-4), AdamRecipe(lr=6e-4, decay=Constant()))
    rates = MappingProxyType({"one_step": (1e-3, 2e-3), "vanilla": (1e-4, 2e-4)})

    @classmethod
    def settings(cls, config: BenchConfig) -> dict[str, Any]:
        """Returns the options, with a digest of the pictures in place of their folder."""
        images = FashionImages.from_folder(config.data, "t10k")
        return dataclasses.asdict(config) | {"data": images.digest()}

    def teacher(self) -> Teacher:
        return Guided(FashionTeacher.from_package(), self.config.guidance or GUIDANCE)

    def start(self, width_factor: float) -> Initializer:
        return FromTeacher()

    def prepare(self, progress: bool, methods: Sequence[str] = ()) -> None:
        samples = self.config.samples or self.samples
        if samples < 2 * len(CLASSES):
            raise ValueError(
                f"diversity within a class needs two samples of each of {len(CLASSES)} classes: "
                f"--samples must be at least {2 * len(CLASSES)}, got {samples}"
            )
        self.references(self.teacher())

    @cached_property
    def images(self) -> FashionImages:
        """The pictures of the test."""
        return FashionImages.from_folder(self.config.data, "t10k")

    def references(self, teacher: Teacher) -> tuple[Latents, Latents]:
        """Returns two independent draws of the teacher, computed once for all runs."""
        return reference_draws(
            teacher,
            self.condition(teacher),
            steps=self.teacher_steps,
            seed=self.measure_seed,
            path=self.folder / "references.safetensors",
        )

    def evaluator(self, teacher: Teacher, condition: Condition, seed: int) -> Evaluator:
        reference, _ = self.references(teacher)
        return FashionEvaluator(self._fashion(teacher), condition, reference, self.images)

    def further(
        self,
        teacher: Teacher,
        student: Student | None,
        draw: Draw,
        generator: torch.Generator,
    ) -> dict[str, float]:
        if student is None:
            return {}
        samples = trajectory(student, self.condition(teacher), generator=generator)
        return boundary_errors(samples, student, self.references(teacher), generator)

    def picture(self, teacher: Teacher, x: Latents, condition: Condition) -> Any:
        return image_grid(self._fashion(teacher).decode(x[:100]), columns=10)  # a class a column

    def _fashion(self, teacher: Teacher) -> FashionTeacher:
        found = unguided(teacher)
        assert isinstance(found, FashionTeacher)
        return found
