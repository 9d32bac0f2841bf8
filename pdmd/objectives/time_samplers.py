r"""Time samplers: distributions of :math:`t` over a phase's score range.

An objective diffuses a rollout :math:`x_s`, :math:`s = t_k`, to times :math:`t` sampled from
:math:`[t_k + m (1 - t_k),\; 1 - m]` within the score range, :math:`m` the margin. At its lower end
the variance of score targets would diverge; at its upper end noise would hide all signal.

**Teachers of several networks.** A routed teacher, such as Wan 2.2, has one network per interval
:math:`I_b` of time. If the rows of a batch have times in several intervals, every network is
evaluated. :meth:`TimeSampler.sample` draws the interval first, for the whole batch and all ranks,
with probability :math:`q_b`, and then each row's time from its law conditioned on :math:`I_b`.
With :math:`P_b = P(t \in I_b)` and the importance weight :math:`w_b = P_b / q_b` on the loss,

.. math:: \sum_b q_b\, w_b\, \mathbb E[L \mid t \in I_b]
    = \sum_b P_b\, \mathbb E[L \mid t \in I_b] = \mathbb E[L],

so that every loss that is a mean over rows keeps its expectation and that of its gradient, while
one network is evaluated. By default :math:`q_b = P_b` and all weights are 1.
"""

from __future__ import annotations

import bisect
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pdmd.arguments import checked
from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.schedules import Schedule
from pdmd.diffusion.time_intervals import within
from pdmd.distillation.phases import Phase
from pdmd.randomness import rand
from pdmd.registry import Registry

__all__ = [
    "BalancedTimes",
    "LogSnrTimes",
    "ShiftedTimes",
    "TimeSample",
    "TimeSampler",
    "UniformTimes",
    "time_samplers",
]

_SLACK = 1 + 2**-22  # a time this close above a switch may be routed to its other side


@checked
@dataclass(frozen=True, eq=False)
class TimeSample:
    """Times of a batch within the interval of one network of each denoiser.

    Attributes:
        t: The times, float64, with shape :math:`(n)`.
        weight: The importance weight of the losses at these times.
    """

    t: Tensor
    weight: float = 1.0

    def weighted(self, loss: Tensor) -> Tensor:
        """Returns a loss or a gradient times the weight; itself if the weight is 1."""
        return loss if self.weight == 1 else self.weight * loss


class TimeSampler(ABC):
    """Samples the times to which a rollout is diffused, by inverse transform sampling."""

    @abstractmethod
    def from_uniform(self, u: Tensor, phase: Phase, schedule: Schedule) -> Tensor:
        """Maps uniform numbers monotonically to times within the phase's score range.

        Args:
            u: Numbers in [0, 1], float64, of any shape.
            phase: The phase.
            schedule: The forward process.

        Returns:
            Times, float64, with the shape of ``u``.
        """

    @abstractmethod
    def bounds(self, phase: Phase) -> tuple[float, float]:
        """Returns the lowest and highest time of a phase's samples."""

    def to_uniform(self, t: float, phase: Phase, schedule: Schedule) -> float:
        """Returns the number that :meth:`from_uniform` maps to a time, by refining a grid.

        Args:
            t: A time within :meth:`bounds`.
            phase: The phase.
            schedule: The forward process.
        """
        first, last = 0.0, 1.0
        for _ in range(5):
            u = torch.linspace(first, last, 1025, dtype=torch.float64)
            times = self.from_uniform(u, phase, schedule)
            passed = times < t if times[0] < times[-1] else times > t
            i = max(1, min(int(passed.sum()), 1024))
            first, last = float(u[i - 1]), float(u[i])
        return (first + last) / 2

    def __call__(
        self, n: int, phase: Phase, schedule: Schedule, generator: torch.Generator
    ) -> Tensor:
        """Returns independent times within the phase's score range.

        Args:
            n: The number of times.
            phase: The phase.
            schedule: The forward process.
            generator: The source of randomness.

        Returns:
            Times, float64, with shape :math:`(n)`.
        """
        return self.from_uniform(rand(n, generator, dtype=torch.float64), phase, schedule)

    def sample(
        self, n: int, phase: Phase, denoisers: Sequence[Denoiser], generator: torch.Generator
    ) -> TimeSample:
        """Returns times at which one network of each denoiser is evaluated, on all ranks.

        Where the denoisers switch between no networks, these are the times of a call.

        Args:
            n: The number of times.
            phase: The phase.
            denoisers: The denoisers to evaluate at the times, on one schedule.
            generator: The source of randomness, in the same state on all ranks.
        """
        schedule, (low, high) = denoisers[0].schedule, self.bounds(phase)
        switches = sorted({t for denoiser in denoisers for t in denoiser.switches})
        ends = [low]
        for t in switches:
            if ends[-1] * _SLACK < t < high / _SLACK:
                ends.append(t)
        if len(ends) == 1:
            t = self(n, phase, schedule, generator)
            return TimeSample(within(t, low, high) if switches else t)
        ends.append(high)
        marks = [self.to_uniform(t, phase, schedule) for t in ends]
        shares = [abs(b - a) for a, b in itertools.pairwise(marks)]
        total = sum(shares)
        odds = self.odds([share / total for share in shares])
        drawn = float(torch.rand((), generator=generator, dtype=torch.float64))
        i = min(bisect.bisect(list(itertools.accumulate(odds)), drawn), len(odds) - 1)
        u = marks[i] + (marks[i + 1] - marks[i]) * rand(n, generator, dtype=torch.float64)
        low = ends[i] * _SLACK if i else low  # a switch belongs to the interval below it
        t = self.from_uniform(u, phase, schedule).clamp(low, ends[i + 1])
        return TimeSample(within(t, low, ends[i + 1]), shares[i] / total / odds[i])

    def odds(self, shares: Sequence[float]) -> list[float]:
        """Returns the probabilities with which :meth:`sample` draws the intervals.

        Args:
            shares: The probabilities of the intervals under the law of :math:`t`.
        """
        return list(shares)

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

    def from_uniform(self, u: Tensor, phase: Phase, schedule: Schedule) -> Tensor:
        low, high = self.bounds(phase)
        return low + (high - low) * u

    def to_uniform(self, t: float, phase: Phase, schedule: Schedule) -> float:
        low, high = self.bounds(phase)
        return (t - low) / (high - low)


class LogSnrTimes(_MarginTimes):
    r"""Samples times uniform in log-SNR, with density proportional to :math:`-\dot\lambda_t`."""

    def from_uniform(self, u: Tensor, phase: Phase, schedule: Schedule) -> Tensor:
        low, high = self.bounds(phase)
        ends = schedule.log_snr(torch.tensor([high, low], dtype=torch.float64))
        return schedule.t_from_log_snr(ends[0] + (ends[1] - ends[0]) * u).clamp(low, high)

    def to_uniform(self, t: float, phase: Phase, schedule: Schedule) -> float:
        low, high = self.bounds(phase)
        times = torch.tensor([high, t, low], dtype=torch.float64)
        bottom, level, top = schedule.log_snr(times).tolist()
        return (level - bottom) / (top - bottom)


@checked
class ShiftedTimes(_MarginTimes):
    r"""Samples times uniformly before a shift, as samplers of flow models place their steps.

    With :math:`t = S(v) = s v / (1 + (s - 1) v)`, :math:`v` is uniform between
    :math:`S^{-1}(t_{\text{low}})` and :math:`S^{-1}(t_{\text{high}})`: a phase's times have the
    law of all shifted times, restricted to its score range. Above 1, more of them are noisy: of
    the second phase of Wan 2.2, 43% are above its networks' switch at 0.875 with a shift of 7,
    and 11% of uniform ones.

    Args:
        margin: As :class:`UniformTimes` takes.
        shift: The shift :math:`s`; 1 is uniform.

    Raises:
        ValueError: If the shift is not positive, or the margin is not in (0, 0.5).

    References:
        Esser et al., Scaling Rectified Flow Transformers, arXiv:2403.03206, Eq. 23.
    """

    def __init__(self, margin: float = 0.02, shift: float = 3.0) -> None:
        super().__init__(margin)
        if not (shift > 0 and math.isfinite(shift)):
            raise ValueError(f"a shift must be positive and finite, got {shift}")
        self.shift = float(shift)

    def from_uniform(self, u: Tensor, phase: Phase, schedule: Schedule) -> Tensor:
        low, high = self.bounds(phase)
        first, last = self._unshifted(low), self._unshifted(high)
        v = first + (last - first) * u
        return (self.shift * v / (1 + (self.shift - 1) * v)).clamp(low, high)

    def to_uniform(self, t: float, phase: Phase, schedule: Schedule) -> float:
        first, last = map(self._unshifted, self.bounds(phase))
        return (self._unshifted(t) - first) / (last - first)

    def _unshifted(self, t: float) -> float:
        return t / (self.shift - (self.shift - 1) * t)


@checked
class BalancedTimes(TimeSampler):
    r"""Evaluates all networks of a routed teacher equally often, with importance weights.

    Of uniform times in the second phase of Wan 2.2 (:math:`t_k = 0`, switch at 0.875) 11% are
    above the switch, so that one network of the fake score has a ninth of the updates. Here each
    of :math:`n` networks is drawn with probability :math:`1 / n`, and the losses at its times have
    the weight :math:`n P_b`: their expectation stays that of ``times``. Adam does not depend on
    the scale of a network's gradient, so in the fake score this equalizes the numbers of updates.

    Args:
        times: The distribution of :math:`t`; uniform over the score range by default.
    """

    def __init__(self, times: TimeSampler | None = None) -> None:
        self.times = times or UniformTimes()

    def from_uniform(self, u: Tensor, phase: Phase, schedule: Schedule) -> Tensor:
        return self.times.from_uniform(u, phase, schedule)

    def to_uniform(self, t: float, phase: Phase, schedule: Schedule) -> float:
        return self.times.to_uniform(t, phase, schedule)

    def bounds(self, phase: Phase) -> tuple[float, float]:
        return self.times.bounds(phase)

    def odds(self, shares: Sequence[float]) -> list[float]:
        return [1 / len(shares)] * len(shares)


time_samplers: Registry[type[TimeSampler]] = Registry(
    "time sampler",
    {
        "uniform": "pdmd.objectives.time_samplers:UniformTimes",
        "log_snr": "pdmd.objectives.time_samplers:LogSnrTimes",
        "shifted": "pdmd.objectives.time_samplers:ShiftedTimes",
        "balanced": "pdmd.objectives.time_samplers:BalancedTimes",
    },
)
