"""Initializers: the initial networks of experts and fake scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from pdmd.arguments import checked
from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.routers import IntervalRouter, RoutedDenoiser
from pdmd.distillation.adapters import LowRank, adapt, adapted_parts
from pdmd.distillation.experts import Expert
from pdmd.distillation.phases import Phase
from pdmd.distributed.weight_sources import copy_weights
from pdmd.registry import Registry

__all__ = [
    "CopyInitializer",
    "FromDenoiser",
    "FromNetwork",
    "FromPrevious",
    "FromTeacher",
    "Initializer",
    "LowRankRoles",
    "PerStep",
    "initializers",
]

DEFAULT_ADAPTER = LowRank(rank=64, alpha=8.0)
"""The expert's adapter in the paper."""


class Initializer(ABC):
    """Builds the initial networks of a phase.

    Attributes:
        adapts: Whether it builds adapters over the teacher's networks.
        adapted_roles: The roles, ``generator`` and ``fake``, whose networks are adapters.
    """

    adapts: bool = False
    adapted_roles: tuple[str, ...] = ()

    @abstractmethod
    def expert(self, teacher: Denoiser, phase: Phase, finished: Sequence[Expert]) -> Denoiser:
        """Returns a trainable denoiser for a phase's expert.

        Args:
            teacher: The teacher.
            phase: The phase.
            finished: The finished experts of earlier phases.
        """

    def fake(self, teacher: Denoiser, phase: Phase) -> Denoiser:
        """Returns a trainable denoiser for a phase's fake score.

        By default a copy of the teacher, restricted to its networks in the phase's score range.

        Args:
            teacher: The teacher.
            phase: The phase.
        """
        low, high = phase.score_range
        return teacher.trainable_part(high, low)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class CopyInitializer(Initializer):
    """Initializes networks as copies of a source, over which :class:`LowRankRoles` may adapt.

    Subclasses implement :meth:`expert_source`, and override :meth:`fake_source` if fake scores do
    not start from the teacher.
    """

    @abstractmethod
    def expert_source(
        self, teacher: Denoiser, phase: Phase, finished: Sequence[Expert]
    ) -> Denoiser:
        """Returns the network from which a phase's expert is initialized, without copying it.

        Args:
            teacher: The teacher.
            phase: The phase.
            finished: The finished experts of earlier phases.
        """

    def fake_source(self, teacher: Denoiser, phase: Phase) -> Denoiser:
        """Returns the network from which a phase's fake score is initialized, without copying it.

        Args:
            teacher: The teacher.
            phase: The phase.
        """
        low, high = phase.score_range
        return teacher.part(high, low)

    def expert(self, teacher: Denoiser, phase: Phase, finished: Sequence[Expert]) -> Denoiser:
        return self.expert_source(teacher, phase, finished).trainable_copy()

    def fake(self, teacher: Denoiser, phase: Phase) -> Denoiser:
        return self.fake_source(teacher, phase).trainable_copy()


class FromTeacher(CopyInitializer):
    """Initializes every expert from the teacher, as in the paper.

    If the teacher routes between several networks, an expert copies those that cover its phase.
    """

    def expert_source(
        self, teacher: Denoiser, phase: Phase, finished: Sequence[Expert]
    ) -> Denoiser:
        return teacher.part(phase.t_start, phase.t_end)


class FromPrevious(CopyInitializer):
    """Initializes every expert from the previous one, and the first from the teacher.

    An adapter copies the factors of the previous one, over the teacher's network for its phase.

    Args:
        first: Initializes the first expert; from the teacher by default.
    """

    def __init__(self, first: CopyInitializer | None = None) -> None:
        self.first = first or FromTeacher()

    def expert_source(
        self, teacher: Denoiser, phase: Phase, finished: Sequence[Expert]
    ) -> Denoiser:
        if finished:
            return finished[-1].denoiser
        return self.first.expert_source(teacher, phase, finished)


@checked
class FromNetwork(CopyInitializer):
    """Initializes experts from another network than the teacher, and fake scores from the teacher.

    The network may be smaller, or of another class; of an earlier student, each expert starts from
    that of its phase. See :func:`~pdmd.distillation.student_networks.matched`.

    Args:
        network: The network, on the teacher's schedule.
    """

    def __init__(self, network: Denoiser) -> None:
        self.network = network

    def expert_source(
        self, teacher: Denoiser, phase: Phase, finished: Sequence[Expert]
    ) -> Denoiser:
        return self.network.part(phase.t_start, phase.t_end)


@checked
class FromDenoiser(CopyInitializer):
    """Initializes experts and fake scores from a given network, for teachers without weights.

    Args:
        denoiser: The network, on the teacher's schedule.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser

    def expert_source(
        self, teacher: Denoiser, phase: Phase, finished: Sequence[Expert]
    ) -> Denoiser:
        return self.denoiser

    def fake_source(self, teacher: Denoiser, phase: Phase) -> Denoiser:
        return self.denoiser


@checked
class LowRankRoles(Initializer):
    """Builds experts and fake scores as adapters over the teacher's frozen network.

    Teacher, expert and fake score then share one base, and K experts cost K adapters. The defaults
    are the paper's: adapters of rank 64 and alpha 8 for experts, full weights for fake scores.

    Args:
        expert: The adapters of experts; ``None`` for full weights.
        fake: The adapters of fake scores; ``None`` for full weights.
        start: Provides the base of the adapters, and the initial full weights; the teacher by
            default.
        seed: Seed of the factors.

    References:
        Fan et al., Phased DMD, arXiv:2510.27684, Section 4.1.
    """

    def __init__(
        self,
        expert: LowRank | None = DEFAULT_ADAPTER,
        fake: LowRank | None = None,
        *,
        start: CopyInitializer | None = None,
        seed: int = 0,
    ) -> None:
        self.expert_adapter, self.fake_adapter = expert, fake
        self.start, self.seed = start or FromTeacher(), seed
        roles = (("generator", expert), ("fake", fake))
        self.adapted_roles = tuple(role for role, adapter in roles if adapter is not None)
        self.adapts = bool(self.adapted_roles)

    def expert(self, teacher: Denoiser, phase: Phase, finished: Sequence[Expert]) -> Denoiser:
        if self.expert_adapter is None:
            return self.start.expert(teacher, phase, finished)
        previous = self.start.expert_source(teacher, phase, finished)
        if not adapted_parts(previous):
            return adapt(
                _require_weights(previous), self.expert_adapter, seed=self._seed(phase, 0)
            )
        base = self.start.expert_source(teacher, phase, [])
        expert = adapt(_require_weights(base), self.expert_adapter, seed=self._seed(phase, 0))
        return _copy_factors(expert, previous.part(phase.t_start, phase.t_end))

    def fake(self, teacher: Denoiser, phase: Phase) -> Denoiser:
        if self.fake_adapter is None:
            return self.start.fake(teacher, phase)
        base = _require_weights(self.start.fake_source(teacher, phase))
        return adapt(base, self.fake_adapter, seed=self._seed(phase, 1))

    def _seed(self, phase: Phase, role: int) -> int:
        return (self.seed * 1_000_003 + 2 * phase.index + role) * 1009 % 2**63

    def __repr__(self) -> str:
        return (
            f"LowRankRoles(expert={self.expert_adapter}, fake={self.fake_adapter}, "
            f"start={self.start})"
        )


@checked
class PerStep(Initializer):
    """Builds a separate network for every step of a phase, behind a router.

    Args:
        inner: Initializes each of the networks; from the teacher by default.
    """

    def __init__(self, inner: Initializer | None = None) -> None:
        self.inner = inner or FromTeacher()
        self.adapts, self.adapted_roles = self.inner.adapts, self.inner.adapted_roles

    def expert(self, teacher: Denoiser, phase: Phase, finished: Sequence[Expert]) -> Denoiser:
        networks = [self.inner.expert(teacher, phase, finished) for _ in phase.timesteps]
        return RoutedDenoiser(networks, IntervalRouter((1.0, *phase.timesteps[1:], 0.0)))

    def fake(self, teacher: Denoiser, phase: Phase) -> Denoiser:
        return self.inner.fake(teacher, phase)


def _require_weights(base: Denoiser) -> Denoiser:
    if not any(True for _ in base.parameters()):
        raise ValueError(
            f"{type(base).__name__} has no weights to adapt; train full weights, or adapt another "
            "network by start=FromDenoiser(network)"
        )
    return base


def _copy_factors(expert: Denoiser, previous: Denoiser) -> Denoiser:
    """Copies the factors of a previous expert into those of an adapted network."""
    sources = adapted_parts(previous)
    for i, part in enumerate(adapted_parts(expert)):
        source = sources[min(i, len(sources) - 1)]
        copy_weights(source, part)
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
