r"""Classifier-free guidance: a teacher around a teacher.

.. math:: f_g(x_t, t, c) = f(x_t, t, \varnothing) + g \, (f(x_t, t, c) - f(x_t, t, \varnothing))

References:
    Ho and Salimans, Classifier-Free Diffusion Guidance, arXiv:2207.12598, Eq. 6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pdmd.denoisers import Denoiser
from pdmd.teachers.base import Teacher
from pdmd.typing import Condition, Latents, repeat_condition

__all__ = ["Guided", "unguided"]


class Guided(Teacher):
    """A teacher under classifier-free guidance, itself a teacher.

    Both evaluations run as one batch. At ``scale=1`` the teacher's own prediction is returned,
    with one evaluation, and so is its unconditional one where no condition is given.

    Args:
        teacher: The teacher to guide.
        scale: The guidance scale :math:`g`; 1 is no guidance.
        null: The condition to guide away from, of batch size 1; by default
            ``teacher.encode([None])``.

    Raises:
        ValueError: If the scale is not finite, or the teacher takes no conditions.
    """

    def __init__(self, teacher: Teacher, scale: float, null: Condition = None) -> None:
        super().__init__(
            schedule=teacher.schedule,
            kind=teacher.kind,
            latent_shape=teacher.latent_shape,
            time_range=teacher.time_range,
        )
        if not math.isfinite(scale):
            raise ValueError(f"a guidance scale is a finite number, got {scale}")
        self.teacher = teacher
        self.scale = float(scale)
        self.evaluations = teacher.evaluations * (1 if scale == 1 else 2)
        self.null = teacher.encode([None]) if null is None else null
        if self.null is None and self.scale != 1:
            raise ValueError(
                f"{type(teacher).__name__} takes no conditions, so it cannot be guided; "
                "use scale=1"
            )

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates with and without the condition, in one batch."""
        if self.scale == 1:
            return self.teacher.network(x_t, t, condition)
        null = repeat_condition(self.null, len(x_t))
        if condition is None:  # both evaluations would be the same
            return self.teacher.network(x_t, t, null)
        both: Any = torch.cat([null, condition])  # type: ignore[list-item]
        value = self.teacher.network(torch.cat([x_t, x_t]), torch.cat([t, t]), both)
        unconditional, conditional = value.chunk(2)
        return unconditional + self.scale * (conditional - unconditional)

    def encode(self, prompts: Sequence[Any]) -> Condition:
        """Encodes as the guided teacher does."""
        return self.teacher.encode(prompts)

    @property
    def prompts(self) -> Sequence[Any]:
        """The guided teacher's prompts."""
        return self.teacher.prompts

    def trainable_copy(self) -> Denoiser:
        """Returns a copy of the network without guidance, which the student learns to absorb."""
        return self.teacher.trainable_copy()


def unguided(teacher: Teacher) -> Teacher:
    """Returns the teacher under any guidance."""
    while isinstance(teacher, Guided):
        teacher = teacher.teacher
    return teacher
