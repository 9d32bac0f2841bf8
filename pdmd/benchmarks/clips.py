r"""The clips benchmark: every scheme on a guided text-to-video teacher, with held-out prompts.

Given a prompt, the teacher's characters move at any speed in any direction. Few-step students may
slow their motion down, or let all clips of a prompt move alike; the figures of
:class:`~pdmd.evaluation.clip_evaluator.ClipsEvaluator` show both.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

from pdmd.benchmarks.held_out_prompts import HeldOutPromptsBenchmark
from pdmd.evaluation.clip_evaluator import ClipsEvaluator
from pdmd.evaluation.figures import image_grid
from pdmd.teachers.base import Teacher
from pdmd.teachers.guided import unguided
from pdmd.teachers.packaged.clip_world import CLIP_NAMES
from pdmd.teachers.packaged.clips import ClipsTeacher
from pdmd.training.learning_rates import Constant
from pdmd.training.optimizers import AdamRecipe
from pdmd.typing import Condition, Latents

__all__ = ["ClipsBenchmark"]

DRAWN = 12
"""Clips in the picture of a run."""


class ClipsBenchmark(HeldOutPromptsBenchmark):
    """The clips teacher under guidance; its real clips are rendered by another seed."""

    names = CLIP_NAMES
    updates, batch_size, samples, teacher_steps = 160, 32, 640, 24
    shift = ClipsTeacher.shift
    # By the trials of docs/evidence/guided_search.py.
    optimizers = (AdamRecipe(lr=3e-5), AdamRecipe(lr=6e-5, decay=Constant()))
    rates = MappingProxyType({"one_step": (3e-4, 6e-4)})

    def pretrained(self, prompts: Sequence[str]) -> Teacher:
        return ClipsTeacher.from_package(prompts)

    def prompts_evaluator(
        self, teacher: Teacher, prompts: Sequence[str], reference: Latents
    ) -> ClipsEvaluator:
        return ClipsEvaluator(self._clips(teacher), prompts, reference, self.measure_seed)

    def picture(self, teacher: Teacher, x: Latents, condition: Condition) -> Any:
        pictures = self._clips(teacher).decode(x[:DRAWN])  # a clip per row, a frame per column
        return image_grid(pictures.transpose(1, 2).flatten(0, 1), columns=pictures.shape[2])

    def _clips(self, teacher: Teacher) -> ClipsTeacher:
        found = unguided(teacher)
        assert isinstance(found, ClipsTeacher)
        return found
