"""Benchmarks of guided teachers of texts, with prompts that no run trains on.

A run distills on most prompts and is measured on these and, apart, on the others, which only the
teacher knows. Diversity within a prompt is what guidance lowers first, and what few-step students
lose.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property

import torch

from pdmd.benchmarks.boundary_errors import boundary_errors
from pdmd.benchmarks.distillation import GUIDED_METHODS, DistillationBenchmark, Draw
from pdmd.benchmarks.references import reference_draws
from pdmd.distillation.initializers import FromTeacher, Initializer
from pdmd.distillation.sampling import trajectory
from pdmd.distillation.students import Student
from pdmd.evaluation.evaluator import Evaluator
from pdmd.teachers.base import Teacher
from pdmd.teachers.guided import Guided
from pdmd.training.learning_rates import Constant
from pdmd.training.optimizers import AdamRecipe
from pdmd.typing import Condition, Latents

__all__ = ["HeldOutPromptsBenchmark", "split_prompts"]

SHARE_HELD_OUT = 0.2


def split_prompts(names: Sequence[str], seed: int) -> tuple[list[str], list[str]]:
    """Returns the prompts of training, and those that are held out, a fifth.

    Args:
        names: All prompts.
        seed: The seed of the split.
    """
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    held = set(order[: round(SHARE_HELD_OUT * len(names))])
    return (
        [name for i, name in enumerate(names) if i not in held],
        [name for i, name in enumerate(names) if i in held],
    )


class HeldOutPromptsBenchmark(DistillationBenchmark):
    """A guided teacher, distilled on some of its prompts and measured on all."""

    methods = GUIDED_METHODS
    fake_updates = 2
    optimizers = (AdamRecipe(lr=3e-4), AdamRecipe(lr=6e-4, decay=Constant()))
    names: Sequence[str]
    guidance = 1.5

    @abstractmethod
    def pretrained(self, prompts: Sequence[str]) -> Teacher:
        """Returns the unguided teacher, with the default prompts of a distillation."""

    @abstractmethod
    def prompts_evaluator(
        self, teacher: Teacher, prompts: Sequence[str], reference: Latents
    ) -> Evaluator:
        """Returns the evaluator of samples of these prompts.

        Args:
            teacher: The guided teacher.
            prompts: A prompt per sample.
            reference: The guided teacher's samples of these prompts, with shape :math:`(B, *)`.
        """

    def teacher(self) -> Teacher:
        train, _ = split_prompts(self.names, self.config.data_seed)
        return Guided(self.pretrained(train), self.config.guidance or self.guidance)

    def start(self, width_factor: float) -> Initializer:
        return FromTeacher()

    def prepare(self, progress: bool, methods: Sequence[str] = ()) -> None:
        teacher = self.teacher()
        for held in (False, True):
            self.references(teacher, held)

    @cached_property
    def prompts(self) -> tuple[list[str], list[str]]:
        """The prompts of samples: those of training, repeated, and the held-out ones."""
        samples = self.config.samples or self.samples
        train, held = split_prompts(self.names, self.config.data_seed)
        least = max(2 * len(train), 8 * len(held))
        if samples < least:
            raise ValueError(
                f"diversity within a prompt needs two samples of each of {len(self.names)} "
                f"prompts: --samples must be at least {least}, got {samples}"
            )
        return (
            [train[i % len(train)] for i in range(samples)],
            [held[i % len(held)] for i in range(samples // 4)],
        )

    def condition(self, teacher: Teacher) -> Condition:
        return teacher.encode(self.prompts[0])

    def references(self, teacher: Teacher, held: bool) -> tuple[Latents, Latents]:
        """Returns two independent draws of the teacher, computed once for all runs."""
        return reference_draws(
            teacher,
            teacher.encode(self.prompts[held]),
            steps=self.teacher_steps,
            times=self.times(self.teacher_steps),
            seed=self.measure_seed + held,
            path=self.folder / f"references_{'held' if held else 'train'}.safetensors",
        )

    def evaluator(self, teacher: Teacher, condition: Condition, seed: int) -> Evaluator:
        return self._evaluator(teacher, False)

    def further(
        self,
        teacher: Teacher,
        student: Student | None,
        draw: Draw,
        generator: torch.Generator,
    ) -> dict[str, float]:
        measure = self._evaluator(teacher, True)
        x = draw(teacher.encode(self.prompts[1]), generator=generator)
        held_out = {f"held_out_{name}": value for name, value in measure(x).items()}
        if student is None:
            return held_out
        samples = trajectory(student, self.condition(teacher), generator=generator)
        references = self.references(teacher, False)
        return held_out | boundary_errors(samples, student, references, generator)

    def _evaluator(self, teacher: Teacher, held: bool) -> Evaluator:
        reference, _ = self.references(teacher, held)
        return self.prompts_evaluator(teacher, self.prompts[held], reference)
