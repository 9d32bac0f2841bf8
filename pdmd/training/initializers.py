"""Initializers: where the networks of a phase start."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from pdmd.denoisers import Denoiser
from pdmd.experts import Expert
from pdmd.phases import Phase
from pdmd.routers import IntervalRouter, RoutedDenoiser

__all__ = ["FromDenoiser", "FromPrevious", "FromTeacher", "Initializer", "PerStep"]


class Initializer(ABC):
    """Where the networks of a phase start."""

    @abstractmethod
    def expert(self, teacher: Denoiser, phase: Phase, finished: Sequence[Expert]) -> Denoiser:
        """Returns a trainable denoiser for a phase's expert.

        Args:
            teacher: The teacher.
            phase: The phase.
            finished: The experts of the phases before.
        """

    def fake(self, teacher: Denoiser, phase: Phase) -> Denoiser:
        """Returns a trainable denoiser for a phase's fake score.

        By default a copy of the teacher, of its networks in the phase's score range.

        Args:
            teacher: The teacher.
            phase: The phase.
        """
        low, high = phase.score_range
        return teacher.trainable_part(high, low)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class FromTeacher(Initializer):
    """Starts every expert at the teacher, as the paper does.

    Of a teacher of several networks the expert takes the one that serves its phase, and all of
    them where the phase has several.
    """

    def expert(self, teacher: Denoiser, phase: Phase, finished: Sequence[Expert]) -> Denoiser:
        return teacher.trainable_part(phase.t_start, phase.t_end)


class FromPrevious(Initializer):
    """Starts every expert at the one before it, and the first at the teacher."""

    def expert(self, teacher: Denoiser, phase: Phase, finished: Sequence[Expert]) -> Denoiser:
        if finished:
            return finished[-1].denoiser.trainable_copy()
        return teacher.trainable_part(phase.t_start, phase.t_end)


class FromDenoiser(Initializer):
    """Starts experts and fake scores at a given network, for teachers without weights.

    Args:
        denoiser: The network, on the teacher's schedule.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser

    def expert(self, teacher: Denoiser, phase: Phase, finished: Sequence[Expert]) -> Denoiser:
        return self.denoiser.trainable_copy()

    def fake(self, teacher: Denoiser, phase: Phase) -> Denoiser:
        return self.denoiser.trainable_copy()


class PerStep(Initializer):
    """Gives every step inside a phase a network of its own, behind a router.

    Args:
        inner: Where each of the networks starts; at the teacher by default.
    """

    def __init__(self, inner: Initializer | None = None) -> None:
        self.inner = inner or FromTeacher()

    def expert(self, teacher: Denoiser, phase: Phase, finished: Sequence[Expert]) -> Denoiser:
        networks = [self.inner.expert(teacher, phase, finished) for _ in phase.timesteps]
        return RoutedDenoiser(networks, IntervalRouter((1.0, *phase.timesteps[1:], 0.0)))

    def fake(self, teacher: Denoiser, phase: Phase) -> Denoiser:
        return self.inner.fake(teacher, phase)
