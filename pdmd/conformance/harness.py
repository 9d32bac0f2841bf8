"""What a check works on, and what it found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pdmd.randomness import randn
from pdmd.teachers.base import Teacher
from pdmd.typing import Condition, Latents, expand

__all__ = ["ROWS", "Failed", "NotApplicable", "Outcome", "Report", "Harness"]

ROWS = 3
"""Rows of a batch that a check asks at."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one check found.

    Attributes:
        name: The check's.
        passed: Whether the teacher keeps to it; ``None`` where the check does not apply.
        figures: What was measured, or why not.
    """

    name: str
    passed: bool | None
    figures: str

    def __str__(self) -> str:
        word = {True: "PASS", False: "FAIL", None: "n/a "}[self.passed]
        return f"{word}  {self.name:<14} {self.figures}"


@dataclass(frozen=True)
class Report:
    """What all checks found; as text, one line each.

    Attributes:
        outcomes: One for each check, in order.
    """

    outcomes: tuple[Outcome, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    @property
    def failed(self) -> tuple[str, ...]:
        """The names of the checks that failed."""
        return tuple(o.name for o in self.outcomes if o.passed is False)

    def __str__(self) -> str:
        return "\n".join(map(str, self.outcomes))


class Failed(Exception):
    """The teacher does not keep to a check; says what was found."""


class NotApplicable(Exception):
    """The check does not apply to the teacher; says why."""


class Harness:
    """A teacher with inputs to ask it at."""

    def __init__(self, teacher: Teacher, prompts: list[Any], seed: int) -> None:
        self.teacher, self.prompts = teacher, prompts
        self.generator = torch.Generator().manual_seed(seed)
        low, high = teacher.time_range
        self.times = [low + (high - low) * i / 4 for i in range(5)]
        self.t = torch.tensor(
            [self.times[1], self.times[2], self.times[3]], dtype=torch.float64
        ).to(teacher.device)
        self.narrow = any(p.is_floating_point() and p.itemsize < 4 for p in teacher.parameters())
        self.tolerance = 5e-2 if self.narrow else 2e-4

    def noise(self, rows: int = ROWS) -> Tensor:
        shape = (rows, *self.teacher.latent_shape)
        return randn(shape, self.generator, device=self.teacher.device)

    def latents(self, t: Tensor | float, rows: int = ROWS) -> Latents:
        alpha, sigma = self.teacher.schedule(t)
        x = self.noise(rows)
        return expand(torch.hypot(alpha, sigma), x) * x

    def condition(self) -> Condition:
        return self.placed(self.teacher.encode(self.prompts))

    def placed(self, condition: Condition) -> Condition:
        return None if condition is None else condition.to(self.teacher.device)

    def same(self, found: Tensor, expected: Tensor, what: str) -> float:
        """Returns how far two are apart, relative to the second's largest value.

        Raises:
            Failed: If it is more than the tolerance.
        """
        if found.shape != expected.shape:
            raise Failed(f"{what}: shape {tuple(found.shape)}, not {tuple(expected.shape)}")
        scale = float(expected.abs().max()) or 1.0
        apart = float((found - expected).abs().max()) / scale
        if not apart <= self.tolerance:
            raise Failed(f"{what}: {apart:.2g} apart, allowed is {self.tolerance:g}")
        return apart
