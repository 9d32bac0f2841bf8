r"""Learning rates: a warm-up, and a decay over the updates of a phase.

At update :math:`u` of :math:`n`, counted from 0, the learning rate is

.. math:: \eta_u = \eta \, \min\left(1, \frac{u + 1}{w}\right) d(u / n),

with :math:`w` updates of warm-up (the first factor is 1 without) and the decay :math:`d`. With
:math:`q = \max(0, (p - p_0) / (1 - p_0))` at progress :math:`p`, where :math:`p_0` is the start of
the decay, and the final fraction :math:`r`,

.. math:: d_\text{linear}(p) = 1 - (1 - r) \, q, \qquad
    d_\text{cosine}(p) = r + (1 - r) \, \frac{1 + \cos \pi q}{2}.

Every phase starts its own, since its networks and their optimizers are new.

References:
    Loshchilov and Hutter, SGDR, arXiv:1608.03983, Eq. 5.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from pdmd.arguments import checked
from pdmd.registry import Registry

__all__ = ["Constant", "CosineDecay", "LinearDecay", "RateDecay", "rate_decays", "warmup_factor"]


class RateDecay(ABC):
    """The decay of a learning rate over the updates of a phase."""

    @abstractmethod
    def __call__(self, progress: float) -> float:
        """Returns the fraction of the learning rate at a fraction of the updates, in [0, 1]."""


@checked
@dataclass(frozen=True)
class Constant(RateDecay):
    """No decay."""

    def __call__(self, progress: float) -> float:
        return 1.0


@checked
@dataclass(frozen=True, kw_only=True)
class LinearDecay(RateDecay):
    """Constant, then linear.

    Attributes:
        start: Fraction of the updates after which the learning rate decays.
        final: Fraction of the learning rate reached at the end.

    Raises:
        ValueError: If a fraction is out of its range.
    """

    start: float = 0.5
    final: float = 0.02

    def __post_init__(self) -> None:
        _check(self.start, self.final)

    def __call__(self, progress: float) -> float:
        if progress <= self.start:
            return 1.0
        return 1 - (1 - self.final) * min((progress - self.start) / (1 - self.start), 1.0)


@checked
@dataclass(frozen=True, kw_only=True)
class CosineDecay(RateDecay):
    """Constant, then half a period of the cosine.

    Attributes:
        start: Fraction of the updates after which the learning rate decays.
        final: Fraction of the learning rate reached at the end.

    Raises:
        ValueError: If a fraction is out of its range.
    """

    start: float = 0.0
    final: float = 0.0

    def __post_init__(self) -> None:
        _check(self.start, self.final)

    def __call__(self, progress: float) -> float:
        if progress <= self.start:
            return 1.0
        passed = min((progress - self.start) / (1 - self.start), 1.0)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * passed)) / 2


@checked
def warmup_factor(update: int, warmup: int) -> float:
    """Returns the fraction of the learning rate at an update of a linear warm-up.

    Args:
        update: The update, from 0.
        warmup: Updates of the warm-up; 0 for none.
    """
    return 1.0 if update + 1 >= warmup else (update + 1) / warmup


def _check(start: float, final: float) -> None:
    if not 0 <= start < 1:
        raise ValueError(f"a decay's start must be in [0, 1), got {start}; use Constant for none")
    if not 0 <= final <= 1:
        raise ValueError(f"a decay's final fraction must be in [0, 1], got {final}")


rate_decays: Registry[type[RateDecay]] = Registry(
    "decay of the learning rate",
    {
        "constant": "pdmd.training.learning_rates:Constant",
        "linear": "pdmd.training.learning_rates:LinearDecay",
        "cosine": "pdmd.training.learning_rates:CosineDecay",
    },
)
"""Decays by name, for configurations."""
