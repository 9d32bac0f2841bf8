r"""Calibration of a score on the student's samples.

For :math:`x_t = a x_s + b \varepsilon`, the best prediction of :math:`\varepsilon` given
:math:`x_t` is :math:`\hat\varepsilon = -b \nabla \log p_t(x_t)`. If a score is right,
:math:`\mathbb E \langle \varepsilon, \hat\varepsilon \rangle = \mathbb E \|\hat\varepsilon\|^2`,
so the slope

.. math:: \rho_t = \frac{\mathbb E \langle \varepsilon, \hat\varepsilon \rangle}
    {\mathbb E \|\hat\varepsilon\|^2}

is 1. The fake score's slope says how well it knows the student; the teacher's slope, on the
student's samples, says how well the student knows the teacher.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.schedules import Schedule
from pdmd.diffusion.solvers import diffuse
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
        s: Their time.
        times: Times above :math:`s`.
        condition: Their condition, with batch size :math:`(B)`, or ``None``.
        generator: The source of randomness.

    Returns:
        For each denoiser, a slope for each time.
    """
    slopes: list[list[float]] = [[] for _ in denoisers]
    for t in times:
        epsilon = randn_like(x_s, generator)
        schedule = denoisers[0].schedule
        x_t = diffuse(x_s, epsilon, s, t, schedule)
        _, b = schedule.transition(s, t)
        for out, denoiser in zip(slopes, denoisers, strict=True):
            guess = float(b / schedule(t)[1]) * denoiser(x_t, t, condition).to("epsilon")
            out.append(float((epsilon * guess).sum() / guess.square().sum()))
    return slopes


@torch.no_grad()
def fresh_score(x_t: Latents, x_s: Latents, s: Times, t: float, schedule: Schedule) -> Latents:
    r"""Estimates the score of the diffused student from fresh samples alone, without a network.

    .. math:: \hat S(x_t) = -\frac{1}{b^2} \sum_i w_i (x_t - a x_s^i), \qquad
        w_i \propto e^{-\|x_t - a x_s^i\|^2 / 2 b^2},

    the exact score of the samples' empirical law diffused to :math:`t`. It is consistent as the
    samples grow in number, and needs the more of them the smaller :math:`b` and the larger the
    dimension.

    Args:
        x_t: Where to estimate, with shape :math:`(N, *)`.
        x_s: Fresh samples at time :math:`s` of the same condition, with shape :math:`(M, *)`; not
            those that made ``x_t``.
        s: Their time.
        t: The time of ``x_t``, above :math:`s`.
        schedule: The forward process.

    Returns:
        The estimate, with shape :math:`(N, *)`.
    """
    a, b = (float(c) for c in schedule.transition(s, t))
    points = a * x_s.flatten(1).double()
    flat = x_t.flatten(1).double()
    weights = (-torch.cdist(flat, points).square() / (2 * b * b)).softmax(1)
    return ((weights @ points - flat) / (b * b)).reshape(x_t.shape).to(x_t.dtype)
