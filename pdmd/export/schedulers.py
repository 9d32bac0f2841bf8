r"""Stock schedulers whose timesteps approximate a student's.

A stock scheduler has two parameters, a shift :math:`k` and the last time :math:`T`. It shifts
uniform times :math:`u_i`, given by the pipeline or from 1 to
:math:`k\delta / (1 + (k - 1)\delta)` with :math:`\delta = 10^{-3}`, and stretches them to end at
:math:`T`:

.. math:: w_i = 1 - \frac{k u_i}{1 + (k - 1) u_i}, \qquad t_i = 1 - (1 - T) \frac{w_i}{w_n}

Shifted uniform timesteps have this form, and so do any timesteps of up to three steps. For others
the nearest are fitted, and their error is measured. The exact scheduler stores the timesteps, and
its class is exported too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from pdmd.extras import require

__all__ = ["STOCK", "StockScheduler", "fit_stock", "mixture_samples"]

STOCK = "FlowMatchEulerDiscreteScheduler"
"""The class of stock schedulers."""

MODE_STD = 0.2
"""Standard deviation of each mode of the mixture on which the error is measured."""


@dataclass(frozen=True)
class StockScheduler:
    """A stock scheduler fitted to timesteps.

    Attributes:
        arguments: The arguments of :data:`STOCK`.
        grid: Its timesteps, without the final 0.
        max_error: The largest difference to the student's timesteps.
        error: The root mean square difference to samples with the student's timesteps, for a
            mixture of two Gaussians with closed-form velocity, in standard deviations of the data.
    """

    arguments: dict[str, Any]
    grid: tuple[float, ...]
    max_error: float
    error: float

    def build(self) -> Any:
        """Builds the scheduler."""
        return build_stock(self.arguments)


def build_stock(arguments: dict[str, Any]) -> Any:
    """Builds a stock scheduler."""
    require("diffusers", "diffusers")
    import diffusers

    return getattr(diffusers, STOCK)(**arguments)


def fit_stock(grid: Sequence[float], *, proposed: bool = False) -> StockScheduler:
    """Fits a stock scheduler to timesteps.

    Args:
        grid: Timesteps decreasing from 1, without the final 0.
        proposed: Whether the pipeline passes uniform sigmas, from 1 to 1 over their number.
    """
    arguments: dict[str, Any] = {"shift": 1.0}
    if len(grid) > 1:
        arguments["shift_terminal"] = grid[-1]
    if len(grid) > 2:
        arguments["shift"] = _nearest_shift(grid, proposed)
    scheduler = build_stock(arguments)
    if proposed:
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / len(grid), len(grid)))
    else:
        scheduler.set_timesteps(len(grid))
    fitted = tuple(float(t) for t in scheduler.sigmas[:-1])
    max_error = max(abs(a - b) for a, b in zip(fitted, grid, strict=True))
    gap = mixture_samples(fitted) - mixture_samples(grid)
    error = float(np.sqrt(np.mean(gap**2) / (1 + MODE_STD**2)))
    return StockScheduler(arguments, fitted, max_error, error)


def mixture_samples(grid: Sequence[float]) -> Any:
    r"""Euler samples of a mixture of Gaussians of deviation :math:`c` at 1 and -1.

    With :math:`\alpha = 1 - t` and :math:`v_t = \alpha^2 c^2 + t^2`, the velocity is
    :math:`(x - \hat x_0) / t` with

    .. math:: \hat x_0 = m + \frac{\alpha c^2}{v_t} (x - \alpha m), \qquad
        m = \tanh \frac{\alpha x}{v_t}.

    Args:
        grid: The timesteps, without the final 0.

    Returns:
        The samples from 1000 quantiles of the noise, with shape ``(1000,)``.
    """
    x = np.array([NormalDist().inv_cdf((i + 0.5) / 1000) for i in range(1000)])
    for t, s in zip(grid, [*grid[1:], 0.0], strict=True):
        alpha = 1 - t
        variance = (alpha * MODE_STD) ** 2 + t**2
        m = np.tanh(alpha * x / variance)
        x0 = m + alpha * MODE_STD**2 / variance * (x - alpha * m)
        x = x + (s - t) * (x - x0) / t
    return x


def _nearest_shift(grid: Sequence[float], proposed: bool) -> float:
    target = np.asarray(grid)

    def distance(log_shift: float) -> float:
        return float(np.abs(_shifted_times(math.exp(log_shift), grid, proposed) - target).max())

    logs = np.linspace(-6, 6, 481)
    best = float(logs[int(np.argmin([distance(value) for value in logs]))])
    low, high = best - 0.025, best + 0.025
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(60):  # golden section
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, b) if distance(a) <= distance(b) else (a, high)
    return math.exp((low + high) / 2)


def _shifted_times(shift: float, grid: Sequence[float], proposed: bool) -> Any:
    last = 1 / len(grid) if proposed else shift * 1e-3 / (1 + (shift - 1) * 1e-3)
    u = np.linspace(1, last, len(grid))
    w = 1 - shift * u / (1 + (shift - 1) * u)
    return 1 - (1 - grid[-1]) * w / w[-1]
