r"""Self-calibration: whether a teacher is the score of its own samples, at little cost.

The slope :math:`\rho_t` of :mod:`pdmd.training.monitoring.calibration` is 1 at all times if the
samples :math:`x_0` are the teacher's own and its declaration is right. A reversed sign or time, a
wrong kind, or random weights move it far below 1, already with a few samples of a few steps.

.. math:: 8 \text{ steps} + 3 \text{ times} = 11 \text{ evaluations}

of 8 rows, over all data ranks together, or of one row a rank on more than 8; of up to 32 where
samples have few numbers. With 5 fake updates
per update, a cycle takes 35 forward equivalents of the whole batch (``docs/cost.md``): at batch
size 128 these 88 rows are 2 % of the first cycle.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.sampling import sample_ode
from pdmd.diffusion.schedules import Schedule
from pdmd.diffusion.solvers import diffuse, transition_noise
from pdmd.distributed.communicator import Communicator
from pdmd.randomness import randn_like
from pdmd.typing import Condition

__all__ = ["NUMBERS", "ROWS", "noise_times", "own_slopes"]

ROWS = 8
"""Samples, over all data ranks; one a rank on more ranks."""
NUMBERS = 64
"""Numbers in all samples together, at least, with up to 32 samples."""
STEPS = 8
LEVELS = (2.5, 0.0, -2.0)
"""Log-SNRs of the times, for samples of unit variance."""


@torch.no_grad()
def own_slopes(
    denoiser: Denoiser, condition: Condition, rows: int, ranks: Communicator, together: int
) -> list[float]:
    r"""Measures :math:`\rho_t` of a denoiser on its own samples, on all ranks together.

    It draws from its own generators: the random numbers of a training are not changed.

    Args:
        denoiser: The denoiser, without guidance, or with conditions for which it has no effect.
        condition: This rank's conditions, with batch size ``rows``, or ``None``.
        rows: The number of this rank's samples.
        ranks: The ranks.
        together: How many samples are evaluated together, at most.

    Returns:
        Slopes at three times; not finite where the samples are not.
    """
    generator = torch.Generator().manual_seed(ranks.data_rank)
    schedule, low = denoiser.schedule, denoiser.time_range[0]
    end = 0.0 if low < 1 / STEPS else low
    times = noise_times(schedule, (torch.arange(1, STEPS) / STEPS) ** 1.5, low)
    parts = [
        (i, None if condition is None else condition[i : i + together])
        for i in range(0, rows, together)
    ]
    xs = [
        sample_ode(
            denoiser,
            part,
            batch=min(together, rows - i),
            generator=generator,
            times=[1.0, *times, end],
        ).float()
        for i, part in parts
    ]
    x = torch.cat(xs)
    variance = float(ranks.mean(x.square().mean() - x.mean().square()))
    if not (math.isfinite(variance) and variance > 0):
        return [math.nan]
    shares = torch.sigmoid(-torch.tensor(LEVELS) / 2 + math.log(variance) / 2)
    slopes = []
    for t in noise_times(schedule, shares, low):
        sums = torch.zeros(2, device=x.device)
        for own, (_, part) in zip(xs, parts, strict=True):
            epsilon = randn_like(own, generator)
            x_t = diffuse(own, epsilon, end, t, schedule)
            found = transition_noise(denoiser(x_t, t, part), end).float()
            sums += torch.stack([(epsilon * found).sum(), found.square().sum()])
        along, square = ranks.mean(sums).tolist()
        slopes.append(along / square if square else math.nan)
    return slopes


def noise_times(schedule: Schedule, shares: Tensor, low: float) -> list[float]:
    r"""Returns the times of shares of noise :math:`\sigma / (\alpha + \sigma)`, decreasing.

    Equal shares are equal steps of rectified flow, on any schedule.

    Args:
        schedule: The schedule.
        shares: Shares of noise, in (0, 1).
        low: The lowest time; those at or below it are left out.
    """
    margin = 1e-3
    top, bottom = (float(schedule.log_snr(t)) for t in (low + margin, 1 - margin))
    levels = (2 * torch.logit(1 - shares.double())).clamp(bottom, top)
    times = {float(t) for t in schedule.t_from_log_snr(levels)}
    return sorted((t for t in times if low + margin / 2 < t < 1), reverse=True)
