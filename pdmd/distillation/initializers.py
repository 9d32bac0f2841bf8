"""Initializers: where the networks of a phase start."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.routers import IntervalRouter, RoutedDenoiser
from pdmd.distillation.adapters import LowRank, adapt, adapted_parts
from pdmd.distillation.experts import Expert
from pdmd.distillation.phases import Phase
from pdmd.registry import Registry

__all__ = [
    "FromDenoiser",
    "FromPrevious",
    "FromTeacher",
    "Initializer",
    "LowRankRoles",
    "Origin",
    "PerStep",
    "initializers",
]

DEFAULT_ADAPTER = LowRank(rank=64, alpha=8.0)
"""The paper's."""


class Initializer(ABC):
    """Where the networks of a phase start.

    Attributes:
        adapts: Whether it makes adapters over the teacher's own networks.
    """

    adapts: bool = False

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


class Origin(Initializer):
    """Networks that start as copies of one, or as adapters over it.

    A subclass implements :meth:`origin`, and :meth:`fake_origin` where that is not the teacher.
    """

    @abstractmethod
    def origin(self, teacher: Denoiser, phase: Phase, finished: Sequence[Expert]) -> Denoiser:
        """Returns the network that a phase's expert starts as; itself and not a copy.

        Args:
            teacher: The teacher.
            phase: The phase.
            finished: The experts of the phases before.
        """

    def fake_origin(self, teacher: Denoiser, phase: Phase) -> Denoiser:
        """Returns the network that a phase's fake score starts as, likewise.

        Args:
            teacher: The teacher.
            phase: The phase.
        """
        low, high = phase.score_range
        return teacher.part(high, low)

    def expert(self, teacher: Denoiser, phase: Phase, finished: Sequence[Expert]) -> Denoiser:
        return self.origin(teacher, phase, finished).trainable_copy()

    def fake(self, teacher: Denoiser, phase: Phase) -> Denoiser:
        return self.fake_origin(teacher, phase).trainable_copy()


class FromTeacher(Origin):
    """Starts every expert at the teacher, as the paper does.

    Of a teacher of several networks the expert takes the one that serves its phase, and all of
    them where the phase has several.
    """

    def origin(self, teacher: Denoiser, phase: Phase, finished: Sequence[Expert]) -> Denoiser:
        return teacher.part(phase.t_start, phase.t_end)


class FromPrevious(Origin):
    """Starts every expert at the one before it, and the first at the teacher.

    An adapter starts with the factors of the one before it, over the network of the teacher that
    serves its own phase.
    """

    def origin(self, teacher: Denoiser, phase: Phase, finished: Sequence[Expert]) -> Denoiser:
        if finished:
            return finished[-1].denoiser
        return teacher.part(phase.t_start, phase.t_end)


class FromDenoiser(Origin):
    """Starts experts and fake scores at a given network, for teachers without weights.

    Args:
        denoiser: The network, on the teacher's schedule.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser

    def origin(self, teacher: Denoiser, phase: Phase, finished: Sequence[Expert]) -> Denoiser:
        return self.denoiser

    def fake_origin(self, teacher: Denoiser, phase: Phase) -> Denoiser:
        return self.denoiser


class LowRankRoles(Initializer):
    """Makes experts and fake scores adapters over the teacher's frozen network.

    Teacher, generator and fake score are then roles over one base, and K experts cost K adapters.
    By default as in the paper: adapters of rank 64 and alpha 8 as experts, full weights as fake
    scores.

    Args:
        generator: The experts' adapters, or ``None`` for full weights.
        fake: The fake scores' adapters, or ``None`` for full weights.
        start: Where networks start, and so what lies under the adapters; at the teacher by
            default.
        seed: Seed of the factors.

    References:
        Fan et al., Phased DMD, arXiv:2510.27684, Section 4.1.
    """

    def __init__(
        self,
        generator: LowRank | None = DEFAULT_ADAPTER,
        fake: LowRank | None = None,
        *,
        start: Origin | None = None,
        seed: int = 0,
    ) -> None:
        self.generator, self.low_rank_fake = generator, fake
        self.start, self.seed = start or FromTeacher(), seed
        self.adapts = generator is not None or fake is not None

    def expert(self, teacher: Denoiser, phase: Phase, finished: Sequence[Expert]) -> Denoiser:
        if self.generator is None:
            return self.start.expert(teacher, phase, finished)
        previous = self.start.origin(teacher, phase, finished)
        if not adapted_parts(previous):
            return adapt(_weighty(previous), self.generator, seed=self._seed(phase, 0))
        base = self.start.origin(teacher, phase, [])
        expert = adapt(_weighty(base), self.generator, seed=self._seed(phase, 0))
        return _take_factors(expert, previous.part(phase.t_start, phase.t_end))

    def fake(self, teacher: Denoiser, phase: Phase) -> Denoiser:
        if self.low_rank_fake is None:
            return self.start.fake(teacher, phase)
        base = _weighty(self.start.fake_origin(teacher, phase))
        return adapt(base, self.low_rank_fake, seed=self._seed(phase, 1))

    def _seed(self, phase: Phase, role: int) -> int:
        return (self.seed * 1_000_003 + 2 * phase.index + role) * 1009 % 2**63

    def __repr__(self) -> str:
        return (
            f"LowRankRoles(generator={self.generator}, fake={self.low_rank_fake}, "
            f"start={self.start})"
        )


class PerStep(Initializer):
    """Gives every step inside a phase a network of its own, behind a router.

    Args:
        inner: Where each of the networks starts; at the teacher by default.
    """

    def __init__(self, inner: Initializer | None = None) -> None:
        self.inner = inner or FromTeacher()
        self.adapts = self.inner.adapts

    def expert(self, teacher: Denoiser, phase: Phase, finished: Sequence[Expert]) -> Denoiser:
        networks = [self.inner.expert(teacher, phase, finished) for _ in phase.timesteps]
        return RoutedDenoiser(networks, IntervalRouter((1.0, *phase.timesteps[1:], 0.0)))

    def fake(self, teacher: Denoiser, phase: Phase) -> Denoiser:
        return self.inner.fake(teacher, phase)


def _weighty(base: Denoiser) -> Denoiser:
    if not any(True for _ in base.parameters()):
        raise ValueError(
            f"{type(base).__name__} has no weights to adapt; train full weights, or start at a "
            "network, with start=FromDenoiser(network)"
        )
    return base


def _take_factors(expert: Denoiser, previous: Denoiser) -> Denoiser:
    """Fills an adapted network's factors with those of another, part by part."""
    sources = adapted_parts(previous)
    for i, part in enumerate(adapted_parts(expert)):
        source = sources[min(i, len(sources) - 1)]
        part.load_state_dict(source.state_dict())
    return expert


initializers: Registry[type[Initializer]] = Registry(
    "initializer",
    {
        "teacher": "pdmd.distillation.initializers:FromTeacher",
        "previous": "pdmd.distillation.initializers:FromPrevious",
        "per_step": "pdmd.distillation.initializers:PerStep",
    },
)
"""Initializers by name; one is constructed without arguments."""
