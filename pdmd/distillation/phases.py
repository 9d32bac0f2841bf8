r"""Phases: subintervals of the noise range, and plans of them.

A plan has boundaries :math:`1 = t_0 > t_1 > \dots > t_K = 0`. In phase :math:`k` an expert maps
:math:`x_{t_{k-1}}` to :math:`x_{t_k}` in one or more steps, and real and fake score are compared
at times :math:`t` in the phase's score range: :math:`(t_k, 1)`, reverse nested, as in the paper,
or :math:`(t_k, t_{k-1})`, disjoint.

References:
    Fan et al., Phased DMD, arXiv:2510.27684, Sections 3.1 and 3.2.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from pdmd.arguments import checked
from pdmd.diffusion.schedules import Schedule, check_shift, shift_times
from pdmd.tables import Table, counted

__all__ = ["Disjoint", "Nested", "Phase", "PhasePlan", "ScoreRange"]


BOUNDED = 2.0
"""The largest standard deviation of noise at t = 1, for data of unit variance, of a schedule on
which equal steps of time are of use."""

MAX_STEPS = 10_000
"""The largest number of steps of a plan; teachers take at most about 1000."""


class ScoreRange(ABC):
    """The times at which a phase compares real and fake scores."""

    @abstractmethod
    def __call__(self, t_start: float, t_end: float) -> tuple[float, float]:
        """Returns the range (low, high) for a phase from ``t_start`` to ``t_end``."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Nested(ScoreRange):
    r"""The reverse-nested range :math:`(t_k, 1)`, the paper's."""

    def __call__(self, t_start: float, t_end: float) -> tuple[float, float]:
        return t_end, 1.0


class Disjoint(ScoreRange):
    r"""The disjoint range :math:`(t_k, t_{k-1})`, a control; see the evidence page."""

    def __call__(self, t_start: float, t_end: float) -> tuple[float, float]:
        return t_end, t_start


@checked
@dataclass(frozen=True, kw_only=True)
class Phase:
    """One subinterval of the noise range.

    Attributes:
        index: Position in the plan from 0, the noisiest.
        timesteps: The times at which the expert is evaluated, strictly decreasing from
            :math:`t_{k-1}`.
        t_end: :math:`t_k`, the time of the phase's output.
        score_range: The times (low, high) of the score comparison, within [t_end, 1].

    Raises:
        ValueError: If the timesteps do not decrease strictly within (0, 1] to ``t_end``, or the
            score range is not within [t_end, 1].
    """

    index: int
    timesteps: tuple[float, ...]
    t_end: float
    score_range: tuple[float, float]

    def __post_init__(self) -> None:
        if self.index < 0:
            raise ValueError(f"a phase's index counts from 0, the noisiest, got {self.index}")
        if not self.timesteps:
            raise ValueError(f"phase {self.number} has no steps; every phase takes at least 1")
        times = (*self.timesteps, self.t_end)
        for t in times:
            if not (math.isfinite(t) and 0 <= t <= 1):
                raise ValueError(f"phase {self.number}: time {t} is outside [0, 1]")
        for earlier, later in zip(times, times[1:], strict=False):
            if not later < earlier:
                raise ValueError(
                    f"phase {self.number}: times must decrease strictly from noise to data, got "
                    f"{later} after {earlier}"
                )
        low, high = self.score_range
        if not self.t_end <= low < high <= 1:
            raise ValueError(
                f"phase {self.number}: score range ({low}, {high}) is not within [{self.t_end}, 1]"
            )

    @property
    def number(self) -> int:
        """Position in the plan counted from 1, as phases are named to people."""
        return self.index + 1

    def __str__(self) -> str:
        return f"phase {self.number} from t = {self.t_start:.4g} to {self.t_end:.4g}"

    @property
    def t_start(self) -> float:
        r""":math:`t_{k-1}`, the time of the phase's input."""
        return self.timesteps[0]

    @property
    def steps(self) -> int:
        """The number of network evaluations (NFE) in the phase."""
        return len(self.timesteps)


@checked
@dataclass(frozen=True)
class PhasePlan:
    """Contiguous phases from noise (1) to data (0).

    Attributes:
        phases: The phases, noisiest first.

    Raises:
        ValueError: If there are no phases, or they are not contiguous from 1 to 0.
    """

    phases: tuple[Phase, ...]

    def __post_init__(self) -> None:
        if not self.phases:
            raise ValueError("a plan requires at least one phase")
        first, last = self.phases[0], self.phases[-1]
        if first.t_start != 1:
            raise ValueError(f"a plan starts at noise, t = 1, got {first.t_start}")
        if last.t_end != 0:
            raise ValueError(f"a plan ends at clean data, t = 0, got {last.t_end}")
        for i, phase in enumerate(self.phases):
            if phase.index != i:
                raise ValueError(
                    f"phase {i + 1} of the plan has index {phase.index}, which counts from 0; "
                    f"give it {i}"
                )
        for a, b in zip(self.phases, self.phases[1:], strict=False):
            if a.t_end != b.t_start:
                raise ValueError(
                    f"phase {a.number} ends at {a.t_end} but phase {b.number} starts at "
                    f"{b.t_start}; phases must be contiguous"
                )

    @classmethod
    @checked
    def from_timesteps(
        cls,
        timesteps: Sequence[float],
        *,
        steps: int | Sequence[int] = 1,
        shift: float = 1.0,
        score_range: ScoreRange | None = None,
    ) -> PhasePlan:
        """Groups a decreasing grid of times into phases.

        Args:
            timesteps: Times from 1 to 0, both included: n + 1 times for n steps.
            steps: Steps per phase: one number for all, or one per phase, noisiest first.
            shift: Warps the grid by ``k t / (1 + (k - 1) t)``; 1 for no shift.
            score_range: :class:`Nested` by default.

        Raises:
            ValueError: If the grid does not decrease strictly from 1 to 0, or the numbers of steps
                do not sum to its length.
        """
        times = [float(t) for t in timesteps]
        if len(times) < 2:
            raise ValueError(f"a plan requires at least the times 1 and 0, got {times}")
        if times[0] != 1:
            raise ValueError(f"a plan starts at noise, t = 1, got {times[0]}")
        if times[-1] != 0:
            raise ValueError(f"a plan ends at clean data, t = 0, got {times[-1]}")
        for a, b in zip(times, times[1:], strict=False):
            if not b < a:
                raise ValueError(f"times must decrease strictly from 1 to 0, got {b} after {a}")
        shift = check_shift(shift)
        warped = shift_times(torch.tensor(times, dtype=torch.float64), shift).tolist()
        counts = _counts(steps, len(times) - 1)
        score_range = score_range or Nested()
        phases, start = [], 0
        for index, count in enumerate(counts):
            t_end = warped[start + count]
            phases.append(
                Phase(
                    index=index,
                    timesteps=tuple(warped[start : start + count]),
                    t_end=t_end,
                    score_range=score_range(warped[start], t_end),
                )
            )
            start += count
        return cls(tuple(phases))

    @classmethod
    @checked
    def uniform(
        cls,
        phases: int = 4,
        *,
        steps: int | Sequence[int] = 1,
        shift: float = 1.0,
        score_range: ScoreRange | None = None,
    ) -> PhasePlan:
        """Splits [0, 1] into steps of equal length, then warps the grid by ``shift``.

        Args:
            phases: The number of phases, at least 1.
            steps: Steps per phase: one number for all, or one per phase, noisiest first.
            shift: Warps the grid by ``k t / (1 + (k - 1) t)``; 1 for no shift.
            score_range: :class:`Nested` by default.

        Raises:
            ValueError: If ``phases`` or ``steps`` is not positive, or their numbers differ.
        """
        if phases < 1:
            raise ValueError(f"a plan requires at least 1 phase, got {phases}")
        if phases > MAX_STEPS:
            raise ValueError(f"a plan has at most {MAX_STEPS} phases, got {phases}")
        counts = [steps] * phases if isinstance(steps, int) else list(steps)
        if len(counts) != phases:
            raise ValueError(
                f"got {phases} phases but numbers of steps for {len(counts)}: {counts}"
            )
        for count in counts:
            if count < 1:
                raise ValueError(f"every phase takes at least 1 step, got {count}")
        total = sum(counts)
        if total > MAX_STEPS:
            raise ValueError(f"a plan has at most {MAX_STEPS} steps in total, got {total}")
        grid = [1 - i / total for i in range(total)] + [0.0]
        return cls.from_timesteps(grid, steps=counts, shift=shift, score_range=score_range)

    @classmethod
    @checked
    def from_log_snr(
        cls,
        log_snrs: Sequence[float],
        schedule: Schedule,
        *,
        steps: int | Sequence[int] = 1,
        score_range: ScoreRange | None = None,
    ) -> PhasePlan:
        r"""Places the grid at given log-SNRs :math:`\lambda`, whose times depend on the schedule.

        Args:
            log_snrs: The inner log-SNRs, strictly increasing; the times 1 and 0 are added.
            schedule: The forward process, which converts log-SNR to time.
            steps: Steps per phase: one number for all, or one per phase, noisiest first.
            score_range: :class:`Nested` by default.

        Raises:
            ValueError: If the log-SNRs do not increase strictly, or one is outside the range of
                the schedule.
        """
        inner = [float(schedule.t_from_log_snr(value)) for value in log_snrs]
        for a, b in zip(log_snrs, log_snrs[1:], strict=False):
            if not b > a:
                raise ValueError(
                    f"log-SNRs must increase strictly from noise to data, got {b} after {a}"
                )
        return cls.from_timesteps([1.0, *inner, 0.0], steps=steps, score_range=score_range)

    @classmethod
    @checked
    def on(
        cls,
        schedule: Schedule,
        phases: int = 4,
        *,
        steps: int | Sequence[int] = 1,
        shift: float = 1.0,
        score_range: ScoreRange | None = None,
    ) -> PhasePlan:
        r"""Splits the noise range of a schedule into steps.

        On a bounded schedule, such as rectified flow or a variance-preserving one, this is
        :meth:`uniform`. On one whose noise is many times the data, such as
        :class:`~pdmd.diffusion.schedules.VarianceExploding`, equal steps of time would lie where
        nothing is left of the data; the grid there has the log-SNRs of equal steps of rectified
        flow, :math:`\lambda = 2 \log((1 - u) / u)`.

        Args:
            schedule: The forward process.
            phases: The number of phases, at least 1.
            steps: Steps per phase: one number for all, or one per phase, noisiest first.
            shift: As for :meth:`uniform`.
            score_range: :class:`Nested` by default.

        Raises:
            ValueError: As :meth:`uniform`.
        """
        plan = cls.uniform(phases, steps=steps, shift=shift, score_range=score_range)
        if schedule.prior_std() <= BOUNDED:
            return plan
        bottom, top = (float(schedule.log_snr(t)) for t in (1.0, 0.0))
        levels = [2 * math.log((1 - u) / u) for u in plan.timesteps[1:-1]]
        levels = [level for level in levels if bottom < level < top]
        if len(levels) != plan.nfe - 1:
            raise ValueError(
                f"{schedule!r} has log-SNRs from {bottom:.3g} to {top:.3g}, too few for "
                f"{plan.nfe} steps of equal shares of noise; use PhasePlan.from_log_snr"
            )
        counts = [phase.steps for phase in plan]
        return cls.from_log_snr(levels, schedule, steps=counts, score_range=score_range)

    @property
    def boundaries(self) -> tuple[float, ...]:
        """The boundaries of the phases, (1, t_1, ..., 0)."""
        return (1.0, *(phase.t_end for phase in self.phases))

    @property
    def timesteps(self) -> tuple[float, ...]:
        """The whole grid of times, from 1 to 0."""
        return (*(t for phase in self.phases for t in phase.timesteps), 0.0)

    @property
    def nfe(self) -> int:
        """Network evaluations per sample (NFE)."""
        return sum(phase.steps for phase in self.phases)

    def table(self, schedule: Schedule | None = None) -> Table:
        r"""Returns the plan as a table, a phase a row; ``print(plan)`` shows it.

        Args:
            schedule: Adds the log-SNR at each phase's start and end.
        """
        rows = []
        for phase in self.phases:
            row = [str(phase.number), f"{phase.t_start:.4g} to {phase.t_end:.4g}"]
            if schedule is not None:
                row.append(
                    " to ".join(_log_snr(schedule, t) for t in (phase.t_start, phase.t_end))
                )
            low, high = phase.score_range
            rows.append([*row, _shortened(phase.timesteps), f"{low:.4g} to {high:.4g}"])
        log_snr = () if schedule is None else ("log-SNR",)
        return Table(
            heading=("phase", "t", *log_snr, "evaluated at", "scores compared at"),
            rows=rows,
            caption=f"{counted(len(self), 'phase')}, "
            f"{counted(self.nfe, 'network evaluation')} per sample (NFE); t = 1 is noise",
        )

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def __iter__(self) -> Iterator[Phase]:
        return iter(self.phases)

    def __len__(self) -> int:
        return len(self.phases)

    def __getitem__(self, index: int) -> Phase:
        return self.phases[index]


def _log_snr(schedule: Schedule, t: float) -> str:
    return f"{float(schedule.log_snr(torch.tensor(t, dtype=torch.float64))):.3g}"


def _shortened(times: Sequence[float]) -> str:
    texts = [f"{t:.4g}" for t in times]
    return ", ".join(texts if len(texts) <= 6 else [*texts[:3], "...", texts[-1]])


def _counts(steps: int | Sequence[int], total: int) -> list[int]:
    if isinstance(steps, int):
        if steps < 1:
            raise ValueError(f"every phase takes at least 1 step, got {steps}")
        if total % steps:
            raise ValueError(f"{total} steps do not divide into phases of {steps} each")
        return [steps] * (total // steps)
    counts = list(steps)
    for count in counts:
        if count != int(count):
            raise ValueError(f"numbers of steps must be integers, got {count}")
        if count < 1:
            raise ValueError(f"every phase takes at least 1 step, got {count}")
    if sum(counts) != total:
        raise ValueError(
            f"numbers of steps {counts} sum to {sum(counts)}, but the grid has {total} steps"
        )
    return counts
