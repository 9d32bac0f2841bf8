r"""Schedulers: configurations that make a pipeline walk a student's grid.

The exact one holds the grid, and its class is shipped with the export. A stock one has two
numbers, a shift :math:`k` and the last time :math:`T`. It takes equal steps :math:`u_i`, the
pipeline's or else from 1 to :math:`k\delta / (1 + (k - 1)\delta)` with :math:`\delta = 10^{-3}`,
shifts them and stretches the result to the last time:

.. math:: w_i = 1 - \frac{k u_i}{1 + (k - 1) u_i}, \qquad t_i = 1 - (1 - T) \frac{w_i}{w_n}

Equal steps under any shift are of that form, and so is every grid of up to three steps; the
nearest is taken for others, and its error is measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

__all__ = ["STOCK", "StockScheduler", "fit_stock", "mixture_samples"]

STOCK = "FlowMatchEulerDiscreteScheduler"
"""The stock scheduler."""

SPREAD = 0.2
"""Deviation of each of the two Gaussians on which a stock scheduler's error is measured."""


@dataclass(frozen=True)
class StockScheduler:
    """A stock scheduler near a grid.

    Attributes:
        arguments: Of a :data:`STOCK`.
        grid: The times that it walks, without the last 0.
        off: How far they are from the student's, at most.
        error: How far its samples of two Gaussians, whose velocity is known in closed form, are
            from the exact grid's, as a root mean square in units of the data's deviation.
    """

    arguments: dict[str, Any]
    grid: tuple[float, ...]
    off: float
    error: float

    def make(self) -> Any:
        """Makes it."""
        return make_stock(self.arguments)


def make_stock(arguments: dict[str, Any]) -> Any:
    """Makes a stock scheduler."""
    import diffusers

    return getattr(diffusers, STOCK)(**arguments)


def fit_stock(grid: Sequence[float], *, proposed: bool = False) -> StockScheduler:
    """Returns the stock scheduler nearest to a grid.

    Args:
        grid: Times falling from 1, without the last 0.
        proposed: Whether the pipeline hands the scheduler equal steps, down to 1 over their
            number.
    """
    arguments: dict[str, Any] = {"shift": 1.0}
    if len(grid) > 1:
        arguments["shift_terminal"] = grid[-1]
    if len(grid) > 2:
        arguments["shift"] = _nearest_shift(grid, proposed)
    scheduler = make_stock(arguments)
    if proposed:
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / len(grid), len(grid)))
    else:
        scheduler.set_timesteps(len(grid))
    walked = tuple(float(t) for t in scheduler.sigmas[:-1])
    off = max(abs(a - b) for a, b in zip(walked, grid, strict=True))
    gap = mixture_samples(walked) - mixture_samples(grid)
    error = float(np.sqrt(np.mean(gap**2) / (1 + SPREAD**2)))
    return StockScheduler(arguments, walked, off, error)


def mixture_samples(grid: Sequence[float]) -> Any:
    r"""Walks a grid by Euler's steps, for data from Gaussians of deviation :math:`c` at 1 and -1.

    With :math:`\alpha = 1 - t` and :math:`v_t = \alpha^2 c^2 + t^2`, their velocity is
    :math:`(x - \hat x_0) / t` with

    .. math:: \hat x_0 = m + \frac{\alpha c^2}{v_t} (x - \alpha m), \qquad
        m = \tanh \frac{\alpha x}{v_t}.

    Args:
        grid: The times, without the last 0.

    Returns:
        Where 1000 quantiles of the noise end.
    """
    x = np.array([NormalDist().inv_cdf((i + 0.5) / 1000) for i in range(1000)])
    for t, s in zip(grid, [*grid[1:], 0.0], strict=True):
        alpha = 1 - t
        variance = (alpha * SPREAD) ** 2 + t**2
        m = np.tanh(alpha * x / variance)
        x0 = m + alpha * SPREAD**2 / variance * (x - alpha * m)
        x = x + (s - t) * (x - x0) / t
    return x


def _nearest_shift(grid: Sequence[float], proposed: bool) -> float:
    target = np.asarray(grid)

    def off(log_shift: float) -> float:
        return float(np.abs(_walked(math.exp(log_shift), grid, proposed) - target).max())

    logs = np.linspace(-6, 6, 481)
    best = float(logs[int(np.argmin([off(value) for value in logs]))])
    low, high = best - 0.025, best + 0.025
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(60):  # golden section
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, b) if off(a) <= off(b) else (a, high)
    return math.exp((low + high) / 2)


def _walked(shift: float, grid: Sequence[float], proposed: bool) -> Any:
    least = 1 / len(grid) if proposed else shift * 1e-3 / (1 + (shift - 1) * 1e-3)
    u = np.linspace(1, least, len(grid))
    w = 1 - shift * u / (1 + (shift - 1) * u)
    return 1 - (1 - grid[-1]) * w / w[-1]
