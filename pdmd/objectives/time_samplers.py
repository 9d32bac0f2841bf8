"""Time samplers: where in a phase's score range an objective compares.

They draw times of the diffusion that a rollout's output is noised to, within what a phase may ask
its teacher and its fake score.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pdmd.diffusion.schedules import Schedule
from pdmd.distillation.phases import Phase
from pdmd.randomness import rand
from pdmd.registry import Registry

__all__ = ["LogSnrTimes", "TimeSampler", "UniformTimes", "time_samplers"]


class TimeSampler(ABC):
    """Draws the times at which a rollout is diffused and compared."""

    @abstractmethod
    def __call__(
        self, n: int, phase: Phase, schedule: Schedule, generator: torch.Generator
    ) -> Tensor:
        """Returns times within the phase's score range, float64, with shape :math:`(n)`."""

    @abstractmethod
    def bounds(self, phase: Phase) -> tuple[float, float]:
        """Returns the lowest and highest time that can be drawn in a phase."""

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in vars(self).items())
        return f"{type(self).__name__}({arguments})"


class _InnerTimes(TimeSampler):
    """Times kept off the ends of the score range by a margin.

    Args:
        margin: The share of :math:`(t_k, 1)` left out above :math:`t_k`, and of time left out
            below 1; the target's variance diverges at the one, the noise hides all at the other.

    Raises:
        ValueError: If the margin is not in (0, 0.5).
    """

    def __init__(self, margin: float = 0.02) -> None:
        if not 0 < margin < 0.5:
            raise ValueError(f"a time margin is in (0, 0.5), got {margin}")
        self.margin = float(margin)

    def bounds(self, phase: Phase) -> tuple[float, float]:
        low, high = phase.score_range
        low = max(low, phase.t_end + self.margin * (1 - phase.t_end))
        high = min(high, 1 - self.margin)
        if not low < high:
            raise ValueError(
                f"phase {phase.index + 1}: a time margin of {self.margin} leaves nothing of the "
                f"score range {phase.score_range}; use a smaller margin"
            )
        return low, high


class UniformTimes(_InnerTimes):
    """Draws times uniformly, as the paper does."""

    def __call__(
        self, n: int, phase: Phase, schedule: Schedule, generator: torch.Generator
    ) -> Tensor:
        low, high = self.bounds(phase)
        return low + (high - low) * rand(n, generator, dtype=torch.float64)


class LogSnrTimes(_InnerTimes):
    """Draws times uniformly in log-SNR."""

    def __call__(
        self, n: int, phase: Phase, schedule: Schedule, generator: torch.Generator
    ) -> Tensor:
        low, high = self.bounds(phase)
        ends = schedule.log_snr(torch.tensor([high, low], dtype=torch.float64))
        u = rand(n, generator, dtype=torch.float64)
        return schedule.t_from_log_snr(ends[0] + (ends[1] - ends[0]) * u).clamp(low, high)


time_samplers: Registry[type[TimeSampler]] = Registry(
    "time sampler",
    {
        "uniform": "pdmd.objectives.time_samplers:UniformTimes",
        "log_snr": "pdmd.objectives.time_samplers:LogSnrTimes",
    },
)
