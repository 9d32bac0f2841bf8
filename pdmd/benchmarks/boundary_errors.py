r"""The error of a student at the boundaries of its phases.

The error at a boundary :math:`t_k` is the sliced Wasserstein distance between the student's
samples there and the teacher's samples diffused to :math:`t_k`, divided by that between two draws
of the latter: 1 is no error. It says in which phase quality is lost.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pdmd.diffusion.solvers import renoise_step
from pdmd.distillation.students import Student
from pdmd.evaluation.metrics import sliced_wasserstein
from pdmd.typing import Latents

__all__ = ["boundary_errors"]


def boundary_errors(
    samples: Sequence[Latents],
    student: Student,
    references: tuple[Latents, Latents],
    generator: torch.Generator,
) -> dict[str, float]:
    """Returns the relative error at every boundary but the last.

    Args:
        samples: A trajectory of the student, as
            :func:`~pdmd.distillation.sampling.trajectory` returns it, each with shape
            :math:`(B, *)`.
        student: The student, for its plan and schedule.
        references: Two independent draws of the teacher with the same prompts, with shape
            :math:`(B, *)`.
        generator: The source of the noise.

    Returns:
        ``boundary_k`` for every phase k but the last, counted from 1; 1 is no error.

    Raises:
        ValueError: If the batches differ in size.

    References:
        Rabin et al., Wasserstein Barycenter and its Application to Texture Mixing, 2011.
    """
    errors = {}
    for phase, x in zip(student.plan.phases[:-1], samples[1:], strict=False):
        law, other = (
            renoise_step(reference, 0.0, phase.t_end, student.schedule, generator)
            for reference in references
        )
        law, other, x = law.flatten(1), other.flatten(1), x.flatten(1)
        floor = sliced_wasserstein(other, law)
        errors[f"boundary_{phase.index + 1}"] = sliced_wasserstein(x, law) / floor
    return errors
