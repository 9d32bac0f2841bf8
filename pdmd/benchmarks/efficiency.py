"""Efficiency settings: trainer settings that reduce the network evaluations of a cycle.

All use the same phase plan. ``full_rollout`` is the baseline of the paper's reference
implementation: the rollouts of fake updates run through every step of the student, past the
phase's end, and the part after it is discarded.
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
    """Settings of a cycle.

    Attributes:
        summary: A one-sentence description.
        phase_inputs: Builds the phase inputs, from the number of rollouts in a phase.
        fake_updates_per_rollout: Fake updates that reuse one rollout.
        fake_updates: Builds the schedule of fake updates, from their maximum.
        full: Whether the rollouts of fake updates run through every step of the student.
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
        summary="Rollouts end at the phase's end and start from noise. The default.",
    ),
    "reuse": EfficiencySetting(
        summary="As boundary, one rollout reused by all updates of a cycle.",
        fake_updates_per_rollout=10**4,
    ),
    "reuse_2": EfficiencySetting(
        summary="As boundary, each rollout reused by two fake updates.",
        fake_updates_per_rollout=2,
    ),
    "buffer": EfficiencySetting(
        summary="Phase inputs are computed in large batches and advanced from phase to phase.",
        phase_inputs=lambda rollouts: PhaseInputBuffer(rollouts),
    ),
    "buffer_4": EfficiencySetting(
        summary="As buffer, each phase input used four times.",
        phase_inputs=lambda rollouts: PhaseInputBuffer(-(-rollouts // 4), uses=4),
    ),
    "buffer_reuse": EfficiencySetting(
        summary="As buffer, one rollout reused by all updates of a cycle.",
        phase_inputs=lambda rollouts: PhaseInputBuffer(rollouts),
        fake_updates_per_rollout=10**4,
    ),
    "adaptive": EfficiencySetting(
        summary="As boundary, fake updates adapt to the relative fake-score error.",
        fake_updates=lambda most: AdaptiveUpdates(0.25, most=most),
    ),
    "buffer_adaptive": EfficiencySetting(
        summary="As buffer, fake updates adapt to the relative fake-score error.",
        phase_inputs=lambda rollouts: PhaseInputBuffer(rollouts),
        fake_updates=lambda most: AdaptiveUpdates(0.25, most=most),
    ),
    "buffer_reuse_adaptive": EfficiencySetting(
        summary="As buffer_reuse, fake updates adapt to the relative fake-score error.",
        phase_inputs=lambda rollouts: PhaseInputBuffer(rollouts),
        fake_updates_per_rollout=10**4,
        fake_updates=lambda most: AdaptiveUpdates(0.25, most=most),
    ),
}
"""The efficiency settings by name."""


def full_rollout(plan: PhasePlan, expert: type[Expert] = OdeExpert) -> type[Expert]:
    """Returns a class of experts whose rollouts without gradient run through all later steps too.

    The steps after the phase's end evaluate the expert in training and are discarded, so they
    change only the cost.

    Args:
        plan: The student's phases.
        expert: The class of experts, which defines their steps.
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
            later = [*self.phase.timesteps[taken:]]
            phases = plan.phases[self.phase.index + 1 :]
            later += [t for phase in phases for t in phase.timesteps]
            for t in later:
                self.denoiser(x, t, condition)
            return x

    return FullRollout
