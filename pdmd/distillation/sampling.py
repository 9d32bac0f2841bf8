"""Sampling of students: all experts in sequence, from noise to data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch

from pdmd.arguments import checked
from pdmd.diffusion.sampling import check_batch, initial_noise
from pdmd.distillation.experts import Expert
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
    latent_shape: Sequence[int] | None = None,
) -> list[Latents]:
    r"""Samples a student and returns the latents at every boundary.

    Args:
        student: The student.
        condition: A TensorDict with batch size :math:`(B)`, or ``None``.
        batch: :math:`B`, required without a condition.
        generator: The source of randomness.
        latent_shape: The size of the samples, such as one of ``student.buckets``, whose times are
            then used; the networks' own by default.

    Returns:
        :math:`[x_1, x_{t_1}, \dots, x_0]`, each with shape :math:`(B, *)`.

    Raises:
        ValueError: If the batch is missing or differs from the condition's, or the condition is no
            TensorDict.
    """
    rows = check_batch(condition, batch)
    latents = [initial_noise(student, rows, generator, latent_shape=latent_shape)]
    for module in student.experts:
        expert = student.buckets.expert(cast(Expert, module), latents[-1])
        latents.append(expert(latents[-1], condition, generator=generator))
    return latents


@checked
def sample(
    student: Student,
    condition: Condition = None,
    *,
    batch: int | None = None,
    generator: torch.Generator | None = None,
    latent_shape: Sequence[int] | None = None,
) -> Latents:
    """Samples a student.

    Args:
        student: The student.
        condition: A TensorDict with batch size :math:`(B)`, or ``None``.
        batch: :math:`B`, required without a condition.
        generator: The source of randomness.
        latent_shape: The size of the samples, such as one of ``student.buckets``, whose times are
            then used; the networks' own by default.

    Returns:
        Latents at time 0, with shape :math:`(B, *)`.

    Raises:
        ValueError: If the batch is missing or differs from the condition's, or the condition is no
            TensorDict.
    """
    return trajectory(
        student, condition, batch=batch, generator=generator, latent_shape=latent_shape
    )[-1]
