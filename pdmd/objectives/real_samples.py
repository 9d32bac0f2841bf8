r"""Real samples: samples of :math:`p_s` at a phase's end, for adversarial losses.

The target distribution of the student's :math:`x_s` is the teacher's :math:`p_s`, :math:`s = t_k`.
Its samples are :math:`x_s` on the teacher's probability flow, or diffused clean data,
:math:`x_s = \alpha_s x_0 + \sigma_s \varepsilon`. The distributions are equal for a teacher that
models the data exactly; under guidance, only the former is the student's target.

References:
    Yin et al., DMD2, arXiv:2405.14867, Section 4.3 (diffused data).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeAlias, TypeVar

import torch
from torch import Tensor

from pdmd.arguments import checked
from pdmd.diffusion.denoisers import Denoiser
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
    "DrawSamples",
    "PerPhase",
    "RealSamples",
    "TeacherSamples",
    "real_samples",
]

DrawSamples: TypeAlias = Callable[[int, torch.Generator], tuple[Latents, Condition]]
"""Draws a given number of samples, with their conditions."""

T = TypeVar("T")


@checked
class PerPhase(Generic[T]):
    """A mapping from phases to items that an objective creates at the start of each.

    Args:
        noun: The name of an item in errors.
        remedy: The remedy in errors where a phase has no item.
    """

    def __init__(self, noun: str, remedy: str) -> None:
        self.noun, self.remedy = noun, remedy
        self._items: dict[int, T] = {}

    def set(self, phase: Phase, item: T) -> None:
        """Sets or replaces a phase's item."""
        self._items[phase.index] = item

    def clear(self) -> None:
        """Removes the items of all phases."""
        self._items.clear()

    def get(self, phase: Phase) -> T:
        """Returns a phase's item.

        Raises:
            ValueError: If the phase has none.
        """
        if phase.index not in self._items:
            raise ValueError(f"phase {phase.number} has no {self.noun}; {self.remedy}")
        return self._items[phase.index]


class RealSamples(ABC):
    """A source of real samples at the end of each phase."""

    @abstractmethod
    def prepare(self, context: PhaseContext, generator: torch.Generator) -> DrawSamples:
        """Creates a phase's source of samples.

        Args:
            context: The phase, its models and its conditions.
            generator: The source of randomness, for this call only.

        Returns:
            A function that draws :math:`x_s`, with shape :math:`(n, *)`, and their conditions,
            with batch size :math:`(n)` or ``None``. It must depend on the arguments alone.
        """

    def lowest_time(self, phase: Phase) -> float | None:
        """Returns the lowest time at which the teacher is evaluated, ``None`` if it is not."""
        return None

    def check(self, teacher: Denoiser) -> None:
        """Checks that samples are of the teacher's latents, before a distillation.

        Args:
            teacher: The teacher.

        Raises:
            ValueError: If they are not, or cannot be read.
        """
        return

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in vars(self).items())
        return f"{type(self).__name__}({arguments})"


@checked
class TeacherSamples(RealSamples):
    r"""Samples of the teacher's probability flow, :math:`x_s = \Phi_{s|1}(x_1)`; data-free.

    A pool is integrated at the start of a phase, from which samples are drawn with replacement. A
    pool much larger than a batch prevents critics from memorizing it.

    Args:
        pool: The number of samples in the pool.
        steps: The teacher's steps from 1 to :math:`s`.
        batch: The batch size of the integration.

    Raises:
        ValueError: If an argument is below 1.
    """

    def __init__(self, pool: int = 1024, steps: int = 20, batch: int = 256) -> None:
        for name, value in (("pool", pool), ("steps", steps), ("batch", batch)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.pool, self.steps, self.batch = int(pool), int(steps), int(batch)

    def prepare(self, context: PhaseContext, generator: torch.Generator) -> DrawSamples:
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

    def lowest_time(self, phase: Phase) -> float:
        return 1.0 + (phase.t_end - 1.0) * (self.steps - 1) / self.steps


@checked
class DataSamples(RealSamples):
    r"""Diffused clean data, :math:`x_s = \alpha_s x_0 + \sigma_s \varepsilon`.

    Args:
        source: Draws clean latents with shape :math:`(n, *)`, and their conditions.
    """

    def __init__(self, source: DrawSamples) -> None:
        self.source = source

    def prepare(self, context: PhaseContext, generator: torch.Generator) -> DrawSamples:
        models, s = context.models, context.phase.t_end
        schedule, shape = models.fake.schedule, models.real.latent_shape

        def draw(n: int, generator: torch.Generator) -> tuple[Latents, Condition]:
            x_0, condition = self.source(n, generator)
            if x_0.shape != (n, *shape):
                raise ValueError(
                    f"the data source returned shape {tuple(x_0.shape)}, expected {(n, *shape)}; "
                    "return as many encoded samples as requested"
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
        "store": "pdmd.distillation.stored_samples:StoredSamples",
    },
)
