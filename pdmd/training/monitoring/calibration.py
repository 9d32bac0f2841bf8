r"""Calibration: the regression slope of a score on the student's samples.

For :math:`x_t = a x_s + b \varepsilon`, the least-squares prediction of :math:`\varepsilon` from
:math:`x_t` is :math:`\hat\varepsilon = -b \nabla \log p_t(x_t)`. For the exact score
:math:`\mathbb E \langle \varepsilon, \hat\varepsilon \rangle = \mathbb E \|\hat\varepsilon\|^2`,
so the slope

.. math:: \rho_t = \frac{\mathbb E \langle \varepsilon, \hat\varepsilon \rangle}
    {\mathbb E \|\hat\varepsilon\|^2}

is 1. The slope of the fake score measures how well it follows the student; that of the teacher, on
the student's samples, how well the student matches the teacher.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.schedules import Schedule
from pdmd.diffusion.solvers import diffuse, transition_noise
from pdmd.randomness import randn_like
from pdmd.typing import Condition, Latents, Times

__all__ = ["calibration_slopes", "fresh_score"]


@torch.no_grad()
def calibration_slopes(
    denoisers: Sequence[Denoiser],
    x_s: Latents,
    s: float,
    times: Sequence[float],
    condition: Condition,
    generator: torch.Generator,
) -> list[list[float]]:
    r"""Measures :math:`\rho_t` of several denoisers on the same samples and noise.

    Args:
        denoisers: The scores to measure.
        x_s: Samples at time :math:`s`, with shape :math:`(B, *)`.
        s: Time of the samples.
        times: Times :math:`t > s`.
        condition: Condition of the samples, with batch size :math:`(B)`, or ``None``.
        generator: The random generator.

    Returns:
        The slopes of each denoiser, one per time.
    """
    slopes: list[list[float]] = [[] for _ in denoisers]
    for t in times:
        epsilon = randn_like(x_s, generator)
        schedule = denoisers[0].schedule
        x_t = diffuse(x_s, epsilon, s, t, schedule)
        for out, denoiser in zip(slopes, denoisers, strict=True):
            predicted = transition_noise(denoiser(x_t, t, condition), s)
            out.append(float((epsilon * predicted).sum() / predicted.square().sum()))
    return slopes


@torch.no_grad()
def fresh_score(x_t: Latents, x_s: Latents, s: Times, t: float, schedule: Schedule) -> Latents:
    r"""Estimates the score of the diffused student from samples, without a network.

    .. math:: \hat S(x_t) = -\frac{1}{b^2} \sum_i w_i (x_t - a x_s^i), \qquad
        w_i \propto e^{-\|x_t - a x_s^i\|^2 / 2 b^2},

    the exact score of the samples' empirical distribution diffused to :math:`t`. The estimate is
    consistent as :math:`M \to \infty`; a small :math:`b` or a large dimension needs a larger
    :math:`M`.

    Args:
        x_t: Points of evaluation, with shape :math:`(N, *)`.
        x_s: Samples at time :math:`s` of the same condition, independent of ``x_t``, with shape
            :math:`(M, *)`.
        s: Time of the samples.
        t: Time of ``x_t``, above :math:`s`.
        schedule: The forward process.

    Returns:
        The estimated score, with shape :math:`(N, *)`.
    """
    a, b = (float(c) for c in schedule.transition(s, t))
    points = a * x_s.flatten(1).double()
    flat = x_t.flatten(1).double()
    weights = (-torch.cdist(flat, points).square() / (2 * b * b)).softmax(1)
    return ((weights @ points - flat) / (b * b)).reshape(x_t.shape).to(x_t.dtype)
