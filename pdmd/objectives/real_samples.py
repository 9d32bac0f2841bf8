r"""Real states: samples of :math:`p_s` at a phase's end, to compare the student's with.

The student's :math:`x_s` should follow :math:`p_s`, the teacher's law at :math:`s = t_k`. Samples
of it come from the teacher's own probability flow, stopped at :math:`s`, or from clean data,
diffused: :math:`x_s = \alpha_s x_0 + \sigma_s \varepsilon`. The two agree as far as the teacher
models the data; under guidance only the first is what the student is to follow.

References:
    Yin et al., DMD2, arXiv:2405.14867, Section 4.3 (diffused data).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeAlias, TypeVar

import torch
from torch import Tensor

from pdmd.diffusion.schedules import Schedule
from pdmd.diffusion.solvers import diffuse
from pdmd.distillation.phases import Phase
from pdmd.objectives.base import PhaseContext
from pdmd.objectives.regression import flow
from pdmd.randomness import randint, randn, randn_like
from pdmd.registry import Registry
from pdmd.typing import Condition, Latents

__all__ = [
    "DataSamples",
    "DrawStates",
    "PerPhase",
    "RealSamples",
    "TeacherSamples",
    "real_samples",
]

DrawStates: TypeAlias = Callable[[int, torch.Generator], tuple[Latents, Condition]]
"""Draws a given number of states :math:`x_s` with their conditions."""

T = TypeVar("T")


class PerPhase(Generic[T]):
    """Keeps what an objective makes when phases begin, by the phase's index.

    A phase's item replaces what was kept of the same phase.

    Args:
        noun: What is kept, as errors name it.
        remedy: What to do where a phase has none.
    """

    def __init__(self, noun: str, remedy: str) -> None:
        self.noun, self.remedy = noun, remedy
        self._kept: dict[int, T] = {}

    def put(self, phase: Phase, item: T) -> None:
        """Keeps a phase's item."""
        self._kept[phase.index] = item

    def use(self, phase: Phase) -> T:
        """Returns a phase's item.

        Raises:
            ValueError: If the phase has none.
        """
        if phase.index not in self._kept:
            raise ValueError(f"phase {phase.index + 1} has no {self.noun}; {self.remedy}")
        return self._kept[phase.index]


class RealSamples(ABC):
    """A source of real states at the end of any phase."""

    @abstractmethod
    def prepare(self, context: PhaseContext, generator: torch.Generator) -> DrawStates:
        """Makes a phase's source of states.

        Args:
            context: The phase, its denoisers and conditions.
            generator: The source of randomness, for this call only.

        Returns:
            What draws states :math:`x_s`, with shape :math:`(n, *)`, and their conditions, with
            batch size :math:`(n)` or ``None``. It must depend on the arguments alone.
        """

    def lowest(self, phase: Phase) -> float | None:
        """Returns the lowest time at which the teacher is asked from 1 down, if it is."""
        return None

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in vars(self).items())
        return f"{type(self).__name__}({arguments})"


class TeacherSamples(RealSamples):
    r"""States from the teacher's flow, :math:`x_s = \Phi_{s|1}(x_1)`: no data needed.

    A pool is integrated when a phase begins, and rows of it are drawn with replacement. A pool
    much larger than a batch keeps a critic from learning its rows by heart.

    Args:
        pool: The number of states in the pool.
        steps: The teacher's steps from 1 to :math:`s`.
        batch: States integrated at once.

    Raises:
        ValueError: If one of them is below 1.
    """

    def __init__(self, pool: int = 1024, steps: int = 20, batch: int = 256) -> None:
        for name, value in (("pool", pool), ("steps", steps), ("batch", batch)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.pool, self.steps, self.batch = int(pool), int(steps), int(batch)

    def prepare(self, context: PhaseContext, generator: torch.Generator) -> DrawStates:
        real, s = context.models.real, context.phase.t_end
        condition = context.draw_conditions(self.pool, generator)
        shape = (self.pool, *real.latent_shape)
        x_1 = real.schedule.prior_std() * randn(shape, generator, device=real.device)
        rows = range(0, self.pool, self.batch)
        x_s = torch.cat(
            [
                flow(
                    real,
                    x_1[i : i + self.batch],
                    1.0,
                    s,
                    None if condition is None else condition[i : i + self.batch],
                    self.steps,
                )
                for i in rows
            ]
        )

        def draw(n: int, generator: torch.Generator) -> tuple[Latents, Condition]:
            row = randint(self.pool, n, generator)
            return x_s[row], None if condition is None else condition[row]

        return draw

    def lowest(self, phase: Phase) -> float:
        return 1.0 + (phase.t_end - 1.0) * (self.steps - 1) / self.steps


class DataSamples(RealSamples):
    r"""States from clean data, :math:`x_s = \alpha_s x_0 + \sigma_s \varepsilon`.

    Args:
        source: Draws a given number of clean samples, with shape :math:`(n, *)` and in the
            latents' units, with their conditions.
    """

    def __init__(self, source: DrawStates) -> None:
        self.source = source

    def prepare(self, context: PhaseContext, generator: torch.Generator) -> DrawStates:
        models, s = context.models, context.phase.t_end
        schedule, shape = models.fake.schedule, models.real.latent_shape

        def draw(n: int, generator: torch.Generator) -> tuple[Latents, Condition]:
            x_0, condition = self.source(n, generator)
            if x_0.shape != (n, *shape):
                raise ValueError(
                    f"the data source returned shape {tuple(x_0.shape)} for {n} latents of shape "
                    f"{shape}; return encoded samples, as many as asked for"
                )
            device = models.real.device
            condition = None if condition is None else condition.to(device)
            return _diffuse_clean(x_0.to(device), s, schedule, generator), condition

        return draw

    def __repr__(self) -> str:
        return f"DataSamples({getattr(self.source, '__qualname__', self.source)})"


def _diffuse_clean(
    x_0: Tensor, s: float, schedule: Schedule, generator: torch.Generator
) -> Latents:
    if s == 0:
        return x_0
    return diffuse(x_0, randn_like(x_0, generator), 0.0, s, schedule)


real_samples: Registry[type[RealSamples]] = Registry(
    "source of real samples",
    {
        "teacher": "pdmd.objectives.real_samples:TeacherSamples",
        "data": "pdmd.objectives.real_samples:DataSamples",
    },
)
