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

from pdmd.denoisers import Denoiser
from pdmd.solvers import diffuse
from pdmd.typing import Condition, Latents, randn_like

__all__ = ["calibration_slopes"]


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
