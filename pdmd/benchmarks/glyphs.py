"""The glyphs benchmark: every scheme on a guided text-to-image teacher, with held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import torch

from pdmd.benchmarks.held_out_prompts import HeldOutPromptsBenchmark, split_prompts
from pdmd.evaluation.evaluators import GlyphsEvaluator
from pdmd.evaluation.figures import image_grid
from pdmd.teachers.base import Teacher
from pdmd.teachers.guided import unguided
from pdmd.teachers.packaged.glyph_world import NAMES
from pdmd.teachers.packaged.glyphs import GlyphsTeacher
from pdmd.typing import Condition, Latents

__all__ = ["GlyphsBenchmark"]


class GlyphsBenchmark(HeldOutPromptsBenchmark):
    """The glyphs teacher under guidance; its real pictures are rendered by another seed."""

    names = NAMES
    updates, batch_size, samples, teacher_steps = 240, 64, 736, 24
    # By the trials of docs/evidence/guided_search.py.
    rates = MappingProxyType({"vanilla": (1e-4, 2e-4)})

    def pretrained(self, prompts: Sequence[str]) -> Teacher:
        return GlyphsTeacher.from_pretrained(prompts=prompts)

    def prompts_evaluator(
        self, teacher: Teacher, prompts: Sequence[str], reference: Latents
    ) -> GlyphsEvaluator:
        return GlyphsEvaluator(self._glyphs(teacher), prompts, reference, self.measure_seed)

    def picture(self, teacher: Teacher, x: Latents, condition: Condition) -> Any:
        train, _ = split_prompts(self.names, self.config.data_seed)
        few = torch.cat([rows[:10] for rows in x.split(len(train))[:10]])  # a prompt per column
        return image_grid(self._glyphs(teacher).decode(few), columns=10)

    def _glyphs(self, teacher: Teacher) -> GlyphsTeacher:
        found = unguided(teacher)
        assert isinstance(found, GlyphsTeacher)
        return found
