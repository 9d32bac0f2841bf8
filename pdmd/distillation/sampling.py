"""Sampling of a student: every expert in turn, from noise to data."""

from __future__ import annotations

import torch

from pdmd.diffusion.sampling import check_batch, initial_noise
from pdmd.distillation.students import Student
from pdmd.typing import Condition, Latents

__all__ = ["sample", "trajectory"]


@torch.no_grad()
def trajectory(
    student: Student,
    condition: Condition = None,
    *,
    batch: int | None = None,
    generator: torch.Generator | None = None,
) -> list[Latents]:
    r"""Carries noise through every expert and keeps what each made.

    Args:
        student: The student.
        condition: A condition with batch size :math:`(B)`, or ``None``.
        batch: :math:`B`, needed without a condition.
        generator: The source of randomness.

    Returns:
        :math:`[x_1, x_{t_1}, \dots, x_0]`, each with shape :math:`(B, *)`.

    Raises:
        ValueError: If the batch is missing or does not fit the condition, or the condition is not
            one.
    """
    states = [initial_noise(student, check_batch(condition, batch), generator)]
    for expert in student.experts:
        states.append(expert(states[-1], condition, generator=generator))
    return states


def sample(
    student: Student,
    condition: Condition = None,
    *,
    batch: int | None = None,
    generator: torch.Generator | None = None,
) -> Latents:
    """Draws clean samples; arguments and errors are those of :func:`trajectory`.

    Returns:
        Latents at time 0, with shape :math:`(B, *)`.
    """
    return trajectory(student, condition, batch=batch, generator=generator)[-1]
