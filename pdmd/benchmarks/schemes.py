"""Schemes: few-step methods of the field, as settings of the distillation loop.

A scheme is a phase plan, a truncation, objectives and an efficiency setting. All have an NFE of 4,
except one-step DMD.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from pdmd.benchmarks.efficiency import EFFICIENCY_SETTINGS, EfficiencySetting
from pdmd.diffusion.predictions import Kind
from pdmd.diffusion.schedules import Schedule, check_shift, shift_times
from pdmd.distillation.experts import (
    Expert,
    FullGradient,
    OdeExpert,
    RenoisingExpert,
    StochasticTruncation,
    Truncation,
)
from pdmd.distillation.initializers import CopyInitializer, Initializer, LowRankRoles, PerStep
from pdmd.distillation.low_rank import LowRank
from pdmd.distillation.phases import Disjoint, PhasePlan
from pdmd.objectives.base import Objective
from pdmd.objectives.distribution_matching import DistributionMatching
from pdmd.objectives.score_matching import SubintervalScoreMatching
from pdmd.training.curriculum import Curriculum, Joint, Progressive
from pdmd.training.fake_scores import (
    FakeScores,
    FixedUpdates,
    OneFakeScore,
    OneFakeScorePerExitStep,
)
from pdmd.typing import Latents, Times

__all__ = ["SCHEMES", "Scheme", "biased_target", "shifted_plan"]


def biased_target(
    x_s: Latents, epsilon: Latents, s: Times, t: Times, schedule: Schedule, kind: Kind
) -> Latents:
    r"""The naive velocity target :math:`\varepsilon - x_s`, biased for :math:`s > 0`: a control.

    Arguments are those of :func:`~pdmd.objectives.score_matching.subinterval_target`.

    Raises:
        ValueError: If the kind is not velocity.
    """
    if kind != "velocity":
        raise ValueError(
            f"the biased target is defined for velocity, got {kind!r}; pass a velocity network"
        )
    return epsilon - x_s


def shifted_plan(plan: PhasePlan, shift: float) -> PhasePlan:
    """Returns a plan with all its times warped by ``k t / (1 + (k - 1) t)``.

    Args:
        plan: The plan.
        shift: :math:`k > 0`; above 1, the phases are noisier.

    Raises:
        ValueError: If the shift is not a positive finite number.
    """
    shift = check_shift(shift)

    def warp(*times: float) -> tuple[float, ...]:
        return tuple(shift_times(torch.tensor(times, dtype=torch.float64), shift).tolist())

    phases = []
    for phase in plan:
        low, high = warp(*phase.score_range)
        *steps, t_end = warp(*phase.timesteps, phase.t_end)
        own = replace(phase, timesteps=tuple(steps), t_end=t_end, score_range=(low, high))
        phases.append(own)
    return PhasePlan(tuple(phases))


def _same(init: Initializer) -> Initializer:
    return init


def _unchanged(most: int) -> float:
    return 1.0


def _adapted(init: Initializer) -> Initializer:
    assert isinstance(init, CopyInitializer)
    return LowRankRoles(LowRank(rank=16, alpha=16.0), None, start=init)


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A few-step method.

    Attributes:
        summary: A one-sentence description.
        plan: Builds the phase plan.
        init: Wraps the initializer that all methods share.
        expert: The class of experts.
        truncation: The exit step of a rollout.
        curriculum: The order in which phases train.
        fake_scores: The fake scores of a phase.
        generator_objective: Builds the generator objective.
        fake_objective: Builds the fake objective.
        efficiency: Phase inputs, rollout reuse and number of fake updates.
        update_factor: Multiplies the number of generator updates, for cheaper cycles.
        update_shares: The relative numbers of generator updates by phase; equal by default.
        accumulate: Rollouts whose gradients are summed for one generator update.
        learning_rates: Of generator and fake score, for a tuned scheme; 0, and by default, the
            benchmark's.
        fake_rate_factor: Multiplies the fake score's learning rate, given the benchmark's number
            of fake updates.
        guidance_interval: The lowest and highest time at which a guided teacher guides the
            training; all by default.
        width_factor: Multiplies the network's width, for a control at equal parameters.
    """

    summary: str
    plan: Callable[[], PhasePlan] = PhasePlan.uniform
    init: Callable[[Initializer], Initializer] = _same
    expert: type[Expert] = OdeExpert
    truncation: Truncation = StochasticTruncation()
    curriculum: Curriculum = Progressive()
    fake_scores: FakeScores = OneFakeScore()
    generator_objective: Callable[[], Objective] = DistributionMatching
    fake_objective: Callable[[], Objective] = SubintervalScoreMatching
    efficiency: EfficiencySetting = EFFICIENCY_SETTINGS["boundary"]
    update_factor: float = 1.0
    update_shares: tuple[float, ...] = ()
    accumulate: int = 1
    learning_rates: tuple[float, float] | None = None
    fake_rate_factor: Callable[[int], float] = _unchanged
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    width_factor: float = 1.0


def _whole() -> PhasePlan:
    return PhasePlan.uniform(1, steps=4)


def _halves() -> PhasePlan:
    return PhasePlan.uniform(2, steps=2)


def _first_and_rest() -> PhasePlan:
    return PhasePlan.uniform(2, steps=(1, 3))


def _disjoint() -> PhasePlan:
    return PhasePlan.uniform(4, score_range=Disjoint())


def _fakes(number: int) -> EfficiencySetting:
    return EfficiencySetting(
        summary=f"{number} fake updates.", fake_updates=lambda most: FixedUpdates(number)
    )


SCHEMES: dict[str, Scheme] = {
    "one_step": Scheme(
        summary="DMD in one step.",
        plan=lambda: PhasePlan.uniform(1),
    ),
    "vanilla": Scheme(
        summary="Four steps of one network, with the gradient through all of them.",
        plan=_whole,
        truncation=FullGradient(),
    ),
    "vanilla_experts": Scheme(
        summary="As vanilla, with a network for each step: the mixture of experts, unphased.",
        plan=_whole,
        truncation=FullGradient(),
        init=PerStep,
    ),
    "vanilla_wide": Scheme(
        summary="As vanilla, with one network of the four experts' parameters together.",
        plan=_whole,
        truncation=FullGradient(),
        width_factor=2.0,
    ),
    "sgts": Scheme(
        summary="Four renoising steps, exit at a random one, gradient through it alone (DMD2).",
        plan=_whole,
        expert=RenoisingExpert,
    ),
    "sgts_ode": Scheme(
        summary="As sgts, with deterministic steps.",
        plan=_whole,
    ),
    "sgts_per_exit_step": Scheme(
        summary="As sgts_ode, with a fake score for every exit step.",
        plan=_whole,
        fake_scores=OneFakeScorePerExitStep(),
    ),
    "sgts_per_exit_step_renoise": Scheme(
        summary="As sgts, with a fake score for every exit step.",
        plan=_whole,
        expert=RenoisingExpert,
        fake_scores=OneFakeScorePerExitStep(),
    ),
    "phased": Scheme(summary="Phased DMD: four phases of one step, one expert each."),
    "phased_2x2": Scheme(
        summary="Phased DMD: two phases of two steps, truncated at random inside a phase.",
        plan=_halves,
    ),
    "phased_2x2_full": Scheme(
        summary="As phased_2x2, the gradient through both steps of a phase, three quarters of the "
        "updates in the last.",
        plan=_halves,
        truncation=FullGradient(),
        update_shares=(1, 3),
    ),
    "phased_1x3_full": Scheme(
        summary="Phases of one and three steps, the gradient through all of a phase, two thirds "
        "of the updates in the last.",
        plan=_first_and_rest,
        truncation=FullGradient(),
        update_shares=(1, 2),
    ),
    "phased_disjoint": Scheme(
        summary="As phased, scores compared inside the phase's own interval only.",
        plan=_disjoint,
    ),
    "phased_shared": Scheme(
        summary="As phased, one network for all phases, trained jointly.",
        curriculum=Joint(shared=True),
    ),
    "phased_joint": Scheme(
        summary="As phased, the four experts trained jointly.",
        curriculum=Joint(),
    ),
    "phased_biased": Scheme(
        summary="As phased, the fake score trained on the biased target.",
        fake_objective=lambda: SubintervalScoreMatching(target=biased_target),
    ),
    "phased_one_to_one": Scheme(
        summary="As phased, one fake update per generator update.",
        efficiency=_fakes(1),
    ),
    "phased_adaptive": Scheme(
        summary="As phased, adaptive fake updates, and 36% more generator updates at equal cost.",
        efficiency=EFFICIENCY_SETTINGS["adaptive"],
        update_factor=1.36,
    ),
    "phased_reuse": Scheme(
        summary="As phased, one rollout reused by all updates of a cycle.",
        efficiency=EFFICIENCY_SETTINGS["reuse"],
    ),
    "phased_reuse_2": Scheme(
        summary="As phased, each rollout reused by two fake updates.",
        efficiency=EFFICIENCY_SETTINGS["reuse_2"],
    ),
    "phased_buffer": Scheme(
        summary="As phased, phase inputs from a buffer, advanced from phase to phase.",
        efficiency=EFFICIENCY_SETTINGS["buffer"],
    ),
    "phased_buffer_4": Scheme(
        summary="As phased_buffer, each phase input used four times.",
        efficiency=EFFICIENCY_SETTINGS["buffer_4"],
    ),
    "phased_fast_fake": Scheme(
        summary="As phased_buffer_4, one fake update instead of n at n times the learning rate, "
        "and 27% more generator updates.",
        efficiency=replace(
            EFFICIENCY_SETTINGS["buffer_4"], fake_updates=lambda most: FixedUpdates(1)
        ),
        update_factor=1.27,
        fake_rate_factor=float,
    ),
    "phased_buffer_reuse": Scheme(
        summary="As phased_buffer, one rollout reused by all updates of a cycle.",
        efficiency=EFFICIENCY_SETTINGS["buffer_reuse"],
    ),
    "phased_buffer_adaptive": Scheme(
        summary="As phased_buffer, adaptive fake updates.",
        efficiency=EFFICIENCY_SETTINGS["buffer_adaptive"],
    ),
    "phased_buffer_reuse_adaptive": Scheme(
        summary="As phased_buffer_reuse, adaptive fake updates.",
        efficiency=EFFICIENCY_SETTINGS["buffer_reuse_adaptive"],
    ),
    "phased_lora": Scheme(
        summary="As phased, experts are adapters of rank 16 over the teacher, which learn faster.",
        init=_adapted,
        learning_rates=(1e-3, 0.0),
    ),
    "phased_late": Scheme(
        summary="As phased, half of the generator updates in the last phase.",
        update_shares=(1, 1, 1, 3),
    ),
    "phased_high_4_fakes": Scheme(
        summary="Phased DMD tuned on the digits: boundaries near noise, most updates in the last "
        "phase, four fake updates.",
        plan=lambda: PhasePlan.from_timesteps([1, 0.97, 0.92, 0.85, 0]),
        update_shares=(1, 1, 1, 7),
        efficiency=_fakes(4),
    ),
    "one_step_4_fakes": Scheme(
        summary="As one_step, with four fake updates: the control of phased_high_4_fakes.",
        plan=lambda: PhasePlan.uniform(1),
        efficiency=_fakes(4),
    ),
    "phased_tuned": Scheme(
        summary="Phased DMD tuned on the mixture: boundaries where modes are decided, updates "
        "where errors arise, eight rollouts per update, higher learning rates.",
        plan=lambda: PhasePlan.from_timesteps([1, 0.55, 0.35, 0.18, 0]),
        update_shares=(1, 1, 2, 3),
        accumulate=8,
        learning_rates=(3e-3, 1e-3),
    ),
}
"""The schemes by name."""
