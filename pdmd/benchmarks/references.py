r"""Reference samples of a teacher, and the error of a student against them at phase boundaries.

The error at a boundary :math:`t_k` is the sliced Wasserstein distance between the student's
samples there and the teacher's samples diffused to :math:`t_k`, divided by that between two draws
of the latter: 1 is no error. It says in which phase quality is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.sampling import sample_ode
from pdmd.diffusion.solvers import renoise_step
from pdmd.distillation.students import Student
from pdmd.evaluation.metrics import sliced_wasserstein
from pdmd.files import save_tensors
from pdmd.typing import Condition, Latents

__all__ = ["boundary_errors", "reference_draws"]


def reference_draws(
    teacher: Denoiser, condition: Condition, *, steps: int, seed: int, path: Path
) -> tuple[Latents, Latents]:
    """Returns two independent draws of a teacher, computed once for all runs.

    Args:
        teacher: The teacher, guided or not.
        condition: The conditions of the samples, with batch size :math:`(B)`.
        steps: Euler steps of the teacher.
        seed: The seed of the first draw; that of the second is greater by 10.
        path: The file of the draws, which is written if it does not exist.

    Returns:
        Two batches of samples, with shape :math:`(B, *)`.
    """
    from safetensors.torch import load_file

    if not path.exists():
        draws = {
            name: sample_ode(
                teacher,
                condition,
                steps=steps,
                generator=torch.Generator().manual_seed(seed + 10 * i),
            )
            for i, name in enumerate(("first", "second"))
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(draws, path)
    draws = load_file(path)
    return draws["first"], draws["second"]


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
