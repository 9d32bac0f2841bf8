"""The glyphs benchmark: every scheme on a guided text-to-image teacher, with held-out prompts.

A run distills on the names of most characters and is measured on these and, apart, on the names of
the others, which only the teacher knows. Diversity within a prompt is what guidance lowers first,
and what few-step students lose.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

from pdmd.benchmarks.boundary_errors import boundary_errors
from pdmd.benchmarks.distillation import GUIDED_METHODS, DistillationBenchmark, Draw
from pdmd.benchmarks.references import reference_draws
from pdmd.distillation.initializers import FromTeacher, Initializer
from pdmd.distillation.sampling import trajectory
from pdmd.distillation.students import Student
from pdmd.evaluation.evaluators import Evaluator, GlyphsEvaluator
from pdmd.evaluation.figures import image_grid
from pdmd.teachers.base import Teacher
from pdmd.teachers.guided import Guided, unguided
from pdmd.teachers.packaged.glyph_world import NAMES
from pdmd.teachers.packaged.glyphs import GlyphsTeacher
from pdmd.training.learning_rates import Constant
from pdmd.training.optimizers import AdamRecipe
from pdmd.typing import Condition, Latents

__all__ = ["GlyphsBenchmark", "split_prompts"]

GUIDANCE = 1.5
SHARE_HELD_OUT = 0.2


def split_prompts(seed: int) -> tuple[list[str], list[str]]:
    """Returns the prompts of training, and those that are held out.

    Args:
        seed: The seed of the split.
    """
    order = torch.randperm(len(NAMES), generator=torch.Generator().manual_seed(seed)).tolist()
    held = set(order[: round(SHARE_HELD_OUT * len(NAMES))])
    return (
        [name for i, name in enumerate(NAMES) if i not in held],
        [name for i, name in enumerate(NAMES) if i in held],
    )


class GlyphsBenchmark(DistillationBenchmark):
    """The glyphs teacher under guidance; its real pictures are rendered by another seed."""

    methods = GUIDED_METHODS
    updates, fake_updates, batch_size, samples, teacher_steps = 240, 2, 64, 736, 24
    optimizers = (AdamRecipe(lr=3e-4), AdamRecipe(lr=6e-4, decay=Constant()))

    def teacher(self) -> Teacher:
        train, _ = split_prompts(self.config.data_seed)
        teacher = GlyphsTeacher.from_pretrained(prompts=train)
        return Guided(teacher, self.config.guidance or GUIDANCE)

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
        train, held = split_prompts(self.config.data_seed)
        least = max(2 * len(train), 8 * len(held))
        if samples < least:
            raise ValueError(
                f"diversity within a prompt needs two samples of each of {len(NAMES)} prompts: "
                f"--samples must be at least {least}, got {samples}"
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

    def picture(self, teacher: Teacher, x: Latents, condition: Condition) -> Any:
        train, _ = split_prompts(self.config.data_seed)
        few = torch.cat([rows[:10] for rows in x.split(len(train))[:10]])  # a prompt per column
        return image_grid(self._glyphs(teacher).decode(few), columns=10)

    def _evaluator(self, teacher: Teacher, held: bool) -> GlyphsEvaluator:
        reference, _ = self.references(teacher, held)
        return GlyphsEvaluator(
            self._glyphs(teacher), self.prompts[held], reference, self.measure_seed
        )

    def _glyphs(self, teacher: Teacher) -> GlyphsTeacher:
        found = unguided(teacher)
        assert isinstance(found, GlyphsTeacher)
        return found
