r"""Unfinished students: the experts so far, continued by the teacher.

The experts of phases :math:`1, \dots, k` map noise to :math:`x_{t_k}`. What is left to
:math:`x_0` is integrated along the teacher's probability flow, with the teacher's own steps, so
that samples of any phase can be looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pdmd.arguments import checked
from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.sampling import initial_noise, ode_times
from pdmd.diffusion.solvers import ode_step
from pdmd.distillation.experts import Expert
from pdmd.typing import Condition, Latents

__all__ = ["flow", "sample_unfinished", "teacher_times"]


@checked
def teacher_times(teacher: Denoiser, steps: int, shift: float = 1.0) -> list[float]:
    r"""Returns the times of a teacher's own steps, from 1 to 0, with its recommended shift.

    .. math:: t_i = \frac{s u_i}{1 + (s - 1) u_i}, \qquad u_i = 1 - i / N

    Args:
        teacher: The teacher; its ``shift`` is :math:`s`.
        steps: The number of steps :math:`N`.
        shift: A shift besides it, of another size of samples
            (:class:`~pdmd.distillation.buckets.Bucket`).

    Raises:
        ValueError: If ``steps`` is below 1, or a time is outside the teacher's time range.
    """
    shift = shift * float(getattr(teacher, "shift", 1.0))
    return [shift * u / (1 + (shift - 1) * u) for u in ode_times(teacher, steps)]


@checked
@torch.no_grad()
def flow(
    teacher: Denoiser,
    x_t: Latents,
    t: float,
    s: float,
    condition: Condition,
    *,
    times: Sequence[float],
) -> Latents:
    r"""Integrates a teacher's probability flow from :math:`t` to :math:`s < t` by Euler steps.

    Args:
        teacher: The teacher.
        x_t: Latents at time :math:`t`, with shape :math:`(B, *)`.
        t: The time to start at.
        s: The time to end at.
        condition: A TensorDict with batch size :math:`(B)`, or ``None``.
        times: The teacher's times, of which those between the two are used.

    Returns:
        Latents at time :math:`s`, with shape :math:`(B, *)`.
    """
    low, high = teacher.time_range
    inner = [tau for tau in times if s < tau < t and low <= tau <= high]
    here = min(t, high)
    for tau in (*inner, s):
        x_t = ode_step(teacher(x_t, here, condition), tau)
        here = tau
    return x_t


@checked
@torch.no_grad()
def sample_unfinished(
    experts: Sequence[Expert],
    teacher: Denoiser,
    condition: Condition = None,
    *,
    batch: int,
    generator: torch.Generator,
    times: Sequence[float],
    latent_shape: Sequence[int] | None = None,
) -> Latents:
    r"""Samples the experts of the first phases, and continues by the teacher to :math:`x_0`.

    Args:
        experts: The experts so far, noisiest first; none for samples of the teacher alone.
        teacher: The teacher.
        condition: A TensorDict with batch size :math:`(B)`, or ``None``.
        batch: :math:`B`, the number of samples on this rank.
        generator: The source of randomness.
        times: The teacher's times, from :func:`teacher_times`.
        latent_shape: The size of the samples; the teacher's own by default.

    Returns:
        Latents at time 0, with shape :math:`(B, *)`.
    """
    x, t = initial_noise(teacher, batch, generator, latent_shape=latent_shape), 1.0
    for expert in experts:
        x, t = expert(x, condition, generator=generator), expert.phase.t_end
    return x if t == 0 else flow(teacher, x, t, 0.0, condition, times=times)
