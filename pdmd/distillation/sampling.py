"""Sampling of students: all experts in sequence, from noise to data."""

from __future__ import annotations

import torch

from pdmd.arguments import checked
from pdmd.diffusion.sampling import check_batch, initial_noise
from pdmd.distillation.students import Student
from pdmd.typing import Condition, Latents

__all__ = ["sample", "trajectory"]


@checked
@torch.no_grad()
def trajectory(
    student: Student,
    condition: Condition = None,
    *,
    batch: int | None = None,
    generator: torch.Generator | None = None,
) -> list[Latents]:
    r"""Samples a student and returns the latents at every boundary.

    Args:
        student: The student.
        condition: A TensorDict with batch size :math:`(B)`, or ``None``.
        batch: :math:`B`, required without a condition.
        generator: The source of randomness.

    Returns:
        :math:`[x_1, x_{t_1}, \dots, x_0]`, each with shape :math:`(B, *)`.

    Raises:
        ValueError: If the batch is missing or differs from the condition's, or the condition is no
            TensorDict.
    """
    latents = [initial_noise(student, check_batch(condition, batch), generator)]
    for expert in student.experts:
        latents.append(expert(latents[-1], condition, generator=generator))
    return latents


@checked
def sample(
    student: Student,
    condition: Condition = None,
    *,
    batch: int | None = None,
    generator: torch.Generator | None = None,
) -> Latents:
    """Samples a student.

    Args:
        student: The student.
        condition: A TensorDict with batch size :math:`(B)`, or ``None``.
        batch: :math:`B`, required without a condition.
        generator: The source of randomness.

    Returns:
        Latents at time 0, with shape :math:`(B, *)`.

    Raises:
        ValueError: If the batch is missing or differs from the condition's, or the condition is no
            TensorDict.
    """
    return trajectory(student, condition, batch=batch, generator=generator)[-1]
