"""Economies: the ways of a cycle to ask its networks less, each as a setting of the trainer.

All are the same plan of phases. ``full_rollout`` is how the trainer of the paper's authors makes
the samples of its fake updates: through every step of the student, past the phase's end; what
lies behind it is thrown away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pdmd.distillation.experts import Expert, OdeExpert
from pdmd.distillation.phases import PhasePlan
from pdmd.training.fake_scores import AdaptiveUpdates, FakeUpdates, FixedUpdates
from pdmd.training.phase_inputs import Entries, EntryRing, FreshEntries
from pdmd.typing import Condition, Latents

__all__ = ["ECONOMIES", "Economy", "full_rollout"]


@dataclass(frozen=True, kw_only=True)
class Economy:
    """A way to run a cycle.

    Attributes:
        summary: What it is, in a sentence.
        entries: Makes where rollouts start, from the number of rollouts in a phase.
        anchored: Fake updates that one rollout serves.
        fake_updates: Makes what decides the number of fake updates, from the most of them.
        full: Whether the rollouts of fake updates go through every step of the student.
    """

    summary: str
    entries: Callable[[int], Entries] = lambda rollouts: FreshEntries()
    anchored: int = 1
    fake_updates: Callable[[int], FakeUpdates] = FixedUpdates
    full: bool = False


ECONOMIES: dict[str, Economy] = {
    "full_rollout": Economy(
        summary="Fake updates roll out every step of the student, past the phase's end.",
        full=True,
    ),
    "boundary": Economy(
        summary="Rollouts stop at the phase's end; each starts at noise. The library's default.",
    ),
    "anchored": Economy(
        summary="As boundary, one rollout for the generator's update and its fake updates.",
        anchored=10**4,
    ),
    "anchored_2": Economy(
        summary="As boundary, each rollout for two fake updates.",
        anchored=2,
    ),
    "ring": Economy(
        summary="Entry states are made once in large batches and carried from phase to phase.",
        entries=lambda rollouts: EntryRing(rollouts),
    ),
    "ring_4": Economy(
        summary="As ring, each state used four times.",
        entries=lambda rollouts: EntryRing(-(-rollouts // 4), uses=4),
    ),
    "ring_anchored": Economy(
        summary="As ring, one rollout for the generator's update and its fake updates.",
        entries=lambda rollouts: EntryRing(rollouts),
        anchored=10**4,
    ),
    "adaptive": Economy(
        summary="Rollouts stop at the phase's end; fake updates as the fake score's lag asks.",
        fake_updates=lambda most: AdaptiveUpdates(0.25, most=most),
    ),
    "ring_adaptive": Economy(
        summary="As ring, fake updates as the fake score's lag asks.",
        entries=lambda rollouts: EntryRing(rollouts),
        fake_updates=lambda most: AdaptiveUpdates(0.25, most=most),
    ),
    "ring_anchored_adaptive": Economy(
        summary="As ring_anchored, fake updates as the fake score's lag asks.",
        entries=lambda rollouts: EntryRing(rollouts),
        anchored=10**4,
        fake_updates=lambda most: AdaptiveUpdates(0.25, most=most),
    ),
}
"""Every economy by name."""


def full_rollout(plan: PhasePlan, expert: type[Expert] = OdeExpert) -> type[Expert]:
    """Returns experts whose unrecorded rollouts walk through every step of the student.

    The steps after the phase's end are those of the expert in training: what they make is thrown
    away, so they change the cost alone.

    Args:
        plan: The student's phases.
        expert: How an expert walks through its phase.
    """

    class FullRollout(expert):
        def forward(
            self,
            x: Latents,
            condition: Condition = None,
            *,
            generator: torch.Generator | None = None,
            stop: int | None = None,
        ) -> Latents:
            x = super().forward(x, condition, generator=generator, stop=stop)
            if torch.is_grad_enabled() or not self.training:
                return x
            taken = self.phase.steps if stop is None else stop + 1
            left = [*self.phase.timesteps[taken:]]
            left += [t for later in plan.phases[self.phase.index + 1 :] for t in later.timesteps]
            for t in left:
                self.denoiser(x, t, condition)
            return x

    return FullRollout
