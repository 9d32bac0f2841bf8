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
from pdmd.training.phase_inputs import FreshPhaseInputs, PhaseInputBuffer, PhaseInputs
from pdmd.typing import Condition, Latents

__all__ = ["EFFICIENCY_SETTINGS", "EfficiencySetting", "full_rollout"]


@dataclass(frozen=True, kw_only=True)
class EfficiencySetting:
    """A way to run a cycle.

    Attributes:
        summary: What it is, in a sentence.
        phase_inputs: Makes where rollouts start, from the number of rollouts in a phase.
        fake_updates_per_rollout: Fake updates that one rollout serves.
        fake_updates: Makes what decides the number of fake updates, from the most of them.
        full: Whether the rollouts of fake updates go through every step of the student.
    """

    summary: str
    phase_inputs: Callable[[int], PhaseInputs] = lambda rollouts: FreshPhaseInputs()
    fake_updates_per_rollout: int = 1
    fake_updates: Callable[[int], FakeUpdates] = FixedUpdates
    full: bool = False


EFFICIENCY_SETTINGS: dict[str, EfficiencySetting] = {
    "full_rollout": EfficiencySetting(
        summary="Fake updates roll out every step of the student, past the phase's end.",
        full=True,
    ),
    "boundary": EfficiencySetting(
        summary="Rollouts stop at the phase's end; each starts at noise. The library's default.",
    ),
    "reuse": EfficiencySetting(
        summary="As boundary, one rollout for the generator's update and its fake updates.",
        fake_updates_per_rollout=10**4,
    ),
    "reuse_2": EfficiencySetting(
        summary="As boundary, each rollout for two fake updates.",
        fake_updates_per_rollout=2,
    ),
    "buffer": EfficiencySetting(
        summary="Phase inputs are made once in large batches and carried from phase to phase.",
        phase_inputs=lambda rollouts: PhaseInputBuffer(rollouts),
    ),
    "buffer_4": EfficiencySetting(
        summary="As ring, each state used four times.",
        phase_inputs=lambda rollouts: PhaseInputBuffer(-(-rollouts // 4), uses=4),
    ),
    "buffer_reuse": EfficiencySetting(
        summary="As ring, one rollout for the generator's update and its fake updates.",
        phase_inputs=lambda rollouts: PhaseInputBuffer(rollouts),
        fake_updates_per_rollout=10**4,
    ),
    "adaptive": EfficiencySetting(
        summary="Rollouts stop at the phase's end; fake updates follow the fake score's error.",
        fake_updates=lambda most: AdaptiveUpdates(0.25, most=most),
    ),
    "buffer_adaptive": EfficiencySetting(
        summary="As ring, fake updates as the fake score's relative error asks.",
        phase_inputs=lambda rollouts: PhaseInputBuffer(rollouts),
        fake_updates=lambda most: AdaptiveUpdates(0.25, most=most),
    ),
    "buffer_reuse_adaptive": EfficiencySetting(
        summary="As buffer_reuse, fake updates as the fake score's relative error asks.",
        phase_inputs=lambda rollouts: PhaseInputBuffer(rollouts),
        fake_updates_per_rollout=10**4,
        fake_updates=lambda most: AdaptiveUpdates(0.25, most=most),
    ),
}
"""Every efficiency by name."""


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
            exit_step: int | None = None,
        ) -> Latents:
            x = super().forward(x, condition, generator=generator, exit_step=exit_step)
            if torch.is_grad_enabled() or not self.training:
                return x
            taken = self.phase.steps if exit_step is None else exit_step + 1
            left = [*self.phase.timesteps[taken:]]
            left += [t for later in plan.phases[self.phase.index + 1 :] for t in later.timesteps]
            for t in left:
                self.denoiser(x, t, condition)
            return x

    return FullRollout
