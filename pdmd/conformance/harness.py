"""The harness of conformance checks: a teacher with its inputs, and the outcomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pdmd.arguments import describe
from pdmd.randomness import randn
from pdmd.teachers.base import Teacher
from pdmd.typing import Condition, Latents, expand

__all__ = ["BATCH", "CheckFailed", "NotApplicable", "Outcome", "Report", "TeacherHarness"]

BATCH = 3
"""Batch size of the checks."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of one check.

    Attributes:
        name: The name of the check.
        passed: Whether it passed; ``None`` if it does not apply.
        detail: What was measured, or why it does not apply.
    """

    name: str
    passed: bool | None
    detail: str

    def __str__(self) -> str:
        word = {True: "PASS", False: "FAIL", None: "n/a "}[self.passed]
        return f"{word}  {self.name:<14} {self.detail}"


@dataclass(frozen=True)
class Report:
    """The outcomes of all checks; as a string, one line each.

    Attributes:
        outcomes: The outcomes, in the order of the checks.
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


class CheckFailed(Exception):
    """A check failed; the message states what was found."""


class NotApplicable(Exception):
    """A check does not apply to the teacher; the message states why."""


class TeacherHarness:
    """A teacher with random inputs on which checks evaluate it.

    Args:
        teacher: The teacher.
        prompts: The prompts of a batch.
        seed: The seed of all random numbers.
    """

    def __init__(self, teacher: Teacher, prompts: list[Any], seed: int) -> None:
        self.teacher, self.prompts = teacher, prompts
        self.generator = torch.Generator().manual_seed(seed)
        low, high = teacher.time_range
        self.times = [low + (high - low) * i / 4 for i in range(5)]
        self.t = torch.tensor(
            [self.times[1], self.times[2], self.times[3]], dtype=torch.float64
        ).to(teacher.device)
        self.half_precision = any(
            p.is_floating_point() and p.itemsize < 4 for p in teacher.parameters()
        )
        self.tolerance = 5e-2 if self.half_precision else 2e-4

    def noise(self, rows: int = BATCH) -> Tensor:
        """Returns standard normal noise, with shape :math:`(B, *)`."""
        shape = (rows, *self.teacher.latent_shape)
        return randn(shape, self.generator, device=self.teacher.device)

    def latents(self, t: Tensor | float, rows: int = BATCH) -> Latents:
        """Returns noise at the scale of latents at time t, with shape :math:`(B, *)`."""
        alpha, sigma = self.teacher.schedule(t)
        x = self.noise(rows)
        return expand(torch.hypot(alpha, sigma), x) * x

    def condition(self) -> Condition:
        """Returns the encoded prompts, on the teacher's device."""
        return self.to_device(self.teacher.encode(self.prompts))

    def to_device(self, condition: Condition) -> Condition:
        """Moves a condition to the teacher's device.

        Raises:
            CheckFailed: If it is no condition.
        """
        if condition is not None and not hasattr(condition, "batch_size"):
            raise CheckFailed(
                f"encode() returned {describe(condition)}; return a TensorDict with one row per "
                "prompt, or None"
            )
        return None if condition is None else condition.to(self.teacher.device)

    def assert_close(self, found: Tensor, expected: Tensor, what: str) -> float:
        """Returns the largest difference, relative to the largest expected value.

        Raises:
            CheckFailed: If it exceeds the tolerance.
        """
        if found.shape != expected.shape:
            raise CheckFailed(f"{what}: shape {tuple(found.shape)}, not {tuple(expected.shape)}")
        scale = float(expected.abs().max()) or 1.0
        error = float((found - expected).abs().max()) / scale
        if not error <= self.tolerance:
            raise CheckFailed(f"{what}: relative error {error:.2g}, tolerance {self.tolerance:g}")
        return error
