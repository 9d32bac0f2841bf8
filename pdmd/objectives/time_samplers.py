r"""Time samplers: distributions of :math:`t` over a phase's score range.

An objective diffuses a rollout :math:`x_s`, :math:`s = t_k`, to times :math:`t` sampled from
:math:`[t_k + m (1 - t_k),\; 1 - m]` within the score range, :math:`m` the margin. At its lower end
the variance of score targets would diverge; at its upper end noise would hide all signal.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pdmd.arguments import checked
from pdmd.diffusion.schedules import Schedule
from pdmd.distillation.phases import Phase
from pdmd.randomness import rand
from pdmd.registry import Registry

__all__ = ["LogSnrTimes", "TimeSampler", "UniformTimes", "time_samplers"]


class TimeSampler(ABC):
    """Samples the times to which a rollout is diffused."""

    @abstractmethod
    def __call__(
        self, n: int, phase: Phase, schedule: Schedule, generator: torch.Generator
    ) -> Tensor:
        """Returns times within the phase's score range, float64, with shape :math:`(n)`.

        Args:
            n: The number of times.
            phase: The phase.
            schedule: The forward process.
            generator: The source of randomness.
        """

    @abstractmethod
    def bounds(self, phase: Phase) -> tuple[float, float]:
        """Returns the lowest and highest time of a phase's samples."""

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in vars(self).items())
        return f"{type(self).__name__}({arguments})"


@checked
class _MarginTimes(TimeSampler):
    r"""Samples times with a margin at both ends of the score range.

    Args:
        margin: :math:`m`: times are at least :math:`t_k + m (1 - t_k)` and at most :math:`1 - m`.

    Raises:
        ValueError: If the margin is not in (0, 0.5).
    """

    def __init__(self, margin: float = 0.02) -> None:
        if not 0 < margin < 0.5:
            raise ValueError(f"a time margin must be in (0, 0.5), got {margin}")
        self.margin = float(margin)

    def bounds(self, phase: Phase) -> tuple[float, float]:
        low, high = phase.score_range
        low = max(low, phase.t_end + self.margin * (1 - phase.t_end))
        high = min(high, 1 - self.margin)
        if not low < high:
            raise ValueError(
                f"phase {phase.number}: a time margin of {self.margin} leaves no times of the "
                f"score range {phase.score_range}; use a smaller margin"
            )
        return low, high


class UniformTimes(_MarginTimes):
    """Samples times uniformly, as the paper does."""

    def __call__(
        self, n: int, phase: Phase, schedule: Schedule, generator: torch.Generator
    ) -> Tensor:
        low, high = self.bounds(phase)
        return low + (high - low) * rand(n, generator, dtype=torch.float64)


class LogSnrTimes(_MarginTimes):
    r"""Samples times uniform in log-SNR, with density proportional to :math:`-\dot\lambda_t`."""

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
