r"""Schedulers: configurations that make a pipeline walk a student's grid.

The exact one holds the grid, and its class is shipped with the export. A stock one has two
numbers, a shift :math:`k` and the last time :math:`T`: it takes equal steps
:math:`u_i` from 1 to :math:`m = k\delta / (1 + (k - 1)\delta)` with :math:`\delta = 10^{-3}`,
shifts them, :math:`w_i = 1 - k u_i / (1 + (k - 1) u_i)`, and stretches the result to the last time,
:math:`t_i = 1 - (1 - T) w_i / w_n`. Equal steps under any shift are of that form, and so is every
grid of up to three steps; the nearest is taken for others, and its error is measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["StockScheduler", "fit_stock", "gaussian_sample"]

SPREAD = 0.5
"""Deviation of the Gaussian data on which a stock scheduler's error is measured."""


@dataclass(frozen=True)
class StockScheduler:
    """A stock scheduler near a grid.

    Attributes:
        arguments: Of a ``FlowMatchEulerDiscreteScheduler``.
        grid: The times that it walks, without the last 0.
        off: How far they are from the student's, at most.
        error: How far its samples of Gaussian data, whose velocity is known in closed form, are
            from the exact grid's, where the noise is 1; in units of the data's deviation.
    """

    arguments: dict[str, Any]
    grid: tuple[float, ...]
    off: float
    error: float


def fit_stock(grid: Sequence[float]) -> StockScheduler:
    """Returns the stock scheduler nearest to a grid, for pipelines that propose no times.

    Args:
        grid: Times falling from 1, without the last 0.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    arguments: dict[str, Any] = {"shift": 1.0}
    if len(grid) > 1:
        arguments["shift_terminal"] = grid[-1]
    if len(grid) > 2:
        arguments["shift"] = _nearest_shift(grid)
    scheduler: Any = FlowMatchEulerDiscreteScheduler(**arguments)
    scheduler.set_timesteps(len(grid))
    walked = tuple(float(t) for t in scheduler.sigmas[:-1])
    return StockScheduler(
        arguments,
        walked,
        max(abs(a - b) for a, b in zip(walked, grid, strict=True)),
        abs(gaussian_sample(walked) - gaussian_sample(grid)) / SPREAD,
    )


def gaussian_sample(grid: Sequence[float]) -> float:
    r"""Walks a grid by Euler's steps from 1, for Gaussian data of deviation :math:`c = 1/2`.

    Their velocity is linear,

    .. math:: v(x, t) = \frac{t - (1 - t) c^2}{(1 - t)^2 c^2 + t^2} \, x,

    so one number tells how any sample is scaled.

    Args:
        grid: The times, without the last 0.
    """
    x = 1.0
    for t, s in zip(grid, [*grid[1:], 0.0], strict=True):
        v = (t - (1 - t) * SPREAD**2) / ((1 - t) ** 2 * SPREAD**2 + t**2)
        x += (s - t) * v * x
    return x


def _nearest_shift(grid: Sequence[float]) -> float:
    target = np.asarray(grid)

    def off(log_shift: float) -> float:
        return float(np.abs(_walked(math.exp(log_shift), grid[-1], len(grid)) - target).max())

    logs = np.linspace(-6, 6, 481)
    best = float(logs[int(np.argmin([off(value) for value in logs]))])
    low, high = best - 0.025, best + 0.025
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(60):  # golden section
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, b) if off(a) <= off(b) else (a, high)
    return math.exp((low + high) / 2)


def _walked(shift: float, last: float, steps: int) -> Any:
    least = shift * 1e-3 / (1 + (shift - 1) * 1e-3)
    u = np.linspace(1, least, steps)
    w = 1 - shift * u / (1 + (shift - 1) * u)
    return 1 - (1 - last) * w / w[-1]
