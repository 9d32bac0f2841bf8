"""Schemes: the few-step methods of the field, each as a plan and a way of rolling out.

All of them run through the one distillation loop. Four network evaluations a sample, except
one-step DMD; what differs is stated here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pdmd.benchmarks.efficiency import ECONOMIES, Economy
from pdmd.diffusion.predictions import Kind
from pdmd.diffusion.schedules import Schedule
from pdmd.distillation.experts import (
    Expert,
    FullGradient,
    OdeExpert,
    RenoisingExpert,
    StochasticTruncation,
    Truncation,
)
from pdmd.distillation.initializers import Initializer, PerStep
from pdmd.distillation.phases import Disjoint, PhasePlan
from pdmd.objectives.base import Objective
from pdmd.objectives.distribution_matching import DistributionMatching
from pdmd.objectives.score_matching import SubintervalScoreMatching
from pdmd.training.curriculum import Joint, Order, Progressive
from pdmd.training.fake_scores import FakeScores, FixedUpdates, OneFakeScore, OneFakeScorePerStop
from pdmd.typing import Latents, Times

__all__ = ["SCHEMES", "Scheme", "biased_target"]


def biased_target(
    x_s: Latents, epsilon: Latents, s: Times, t: Times, schedule: Schedule, kind: Kind
) -> Latents:
    r"""The naive velocity target :math:`\varepsilon - x_s`, biased for :math:`s > 0`: a control.

    Arguments are those of :func:`~pdmd.objectives.score_matching.subinterval_target`.

    Raises:
        ValueError: If the kind is not velocity.
    """
    if kind != "velocity":
        raise ValueError(f"the biased target is one of velocity, got {kind!r}")
    return epsilon - x_s


def _same(init: Initializer) -> Initializer:
    return init


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A few-step method.

    Attributes:
        summary: What it is, in a sentence.
        plan: Makes its phases.
        init: Wraps the initializer that all methods share.
        expert: How an expert walks through a phase.
        truncation: Where a rollout stops.
        order: Which phases train together.
        fake_scores: How many fake scores a phase has.
        generator: Makes what the generator minimises.
        fake_score: Makes what the fake score minimises.
        economy: How a cycle asks its networks: where rollouts start, how many fake updates each
            serves, and how many there are.
        more: Multiplies the number of generator updates, for a scheme that spends less on each.
        share: The share of the generator updates that each phase gets; equal by default.
        accumulate: Rollouts whose gradients make one generator update.
        rates: The generator's and the fake score's learning rates, for a scheme tuned on its own;
            the benchmark's by default.
        widen: Multiplies the network's width, for a control at equal parameters.
    """

    summary: str
    plan: Callable[[], PhasePlan] = PhasePlan.uniform
    init: Callable[[Initializer], Initializer] = _same
    expert: type[Expert] = OdeExpert
    truncation: Truncation = StochasticTruncation()
    order: Order = Progressive()
    fake_scores: FakeScores = OneFakeScore()
    generator: Callable[[], Objective] = DistributionMatching
    fake_score: Callable[[], Objective] = SubintervalScoreMatching
    economy: Economy = ECONOMIES["boundary"]
    more: float = 1.0
    share: tuple[float, ...] = ()
    accumulate: int = 1
    rates: tuple[float, float] | None = None
    widen: float = 1.0


def _whole() -> PhasePlan:
    return PhasePlan.uniform(1, steps=4)


def _halves() -> PhasePlan:
    return PhasePlan.uniform(2, steps=2)


def _disjoint() -> PhasePlan:
    return PhasePlan.uniform(4, score_range=Disjoint())


def _fakes(number: int) -> Economy:
    return Economy(
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
        widen=2.0,
    ),
    "sgts": Scheme(
        summary="Four renoising steps, stopped at a random one with its gradient alone (DMD2).",
        plan=_whole,
        expert=RenoisingExpert,
    ),
    "sgts_ode": Scheme(
        summary="As sgts, with deterministic steps.",
        plan=_whole,
    ),
    "sgts_per_stop": Scheme(
        summary="As sgts_ode, with a fake score for every stop.",
        plan=_whole,
        fake_scores=OneFakeScorePerStop(),
    ),
    "sgts_per_stop_renoise": Scheme(
        summary="As sgts, with a fake score for every stop.",
        plan=_whole,
        expert=RenoisingExpert,
        fake_scores=OneFakeScorePerStop(),
    ),
    "phased": Scheme(summary="Phased DMD: four phases of one step, one expert each."),
    "phased_2x2": Scheme(
        summary="Phased DMD: two phases of two steps, truncated at random inside a phase.",
        plan=_halves,
    ),
    "phased_disjoint": Scheme(
        summary="As phased, scores compared inside the phase's own interval only.",
        plan=_disjoint,
    ),
    "phased_shared": Scheme(
        summary="As phased, one network for all phases, trained on all of them at once.",
        order=Joint(shared=True),
    ),
    "phased_joint": Scheme(
        summary="As phased, the four experts trained at once rather than in turn.",
        order=Joint(),
    ),
    "phased_biased": Scheme(
        summary="As phased, the fake score trained on the biased target.",
        fake_score=lambda: SubintervalScoreMatching(target=biased_target),
    ),
    "phased_one_to_one": Scheme(
        summary="As phased, one fake update per generator update.",
        economy=_fakes(1),
    ),
    "phased_adaptive": Scheme(
        summary="As phased, fake updates set by the fake score's lag, and a third more generator "
        "updates for what that saves.",
        economy=ECONOMIES["adaptive"],
        more=1.36,
    ),
    "phased_anchored": Scheme(
        summary="As phased, one rollout for the generator's update and its fake updates.",
        economy=ECONOMIES["anchored"],
    ),
    "phased_anchored_2": Scheme(
        summary="As phased, each rollout for two updates of the fake score.",
        economy=ECONOMIES["anchored_2"],
    ),
    "phased_ring": Scheme(
        summary="As phased, entry states made once and carried from phase to phase.",
        economy=ECONOMIES["ring"],
    ),
    "phased_ring_4": Scheme(
        summary="As phased_ring, each state used four times.",
        economy=ECONOMIES["ring_4"],
    ),
    "phased_ring_anchored": Scheme(
        summary="As phased_ring, one rollout for the generator's update and its fake updates.",
        economy=ECONOMIES["ring_anchored"],
    ),
    "phased_ring_adaptive": Scheme(
        summary="As phased_ring, fake updates set by the fake score's lag.",
        economy=ECONOMIES["ring_adaptive"],
    ),
    "phased_ring_anchored_adaptive": Scheme(
        summary="As phased_ring_anchored, fake updates set by the fake score's lag.",
        economy=ECONOMIES["ring_anchored_adaptive"],
    ),
    "phased_late": Scheme(
        summary="As phased, half of the generator updates in the last phase.",
        share=(1, 1, 1, 3),
    ),
    "phased_high_4_fakes": Scheme(
        summary="Phased DMD as searched for on the digits: cuts near noise, most updates in the "
        "last phase, four fake updates.",
        plan=lambda: PhasePlan.from_timesteps([1, 0.97, 0.92, 0.85, 0]),
        share=(1, 1, 1, 7),
        economy=_fakes(4),
    ),
    "one_step_4_fakes": Scheme(
        summary="As one_step, with four fake updates: the control of phased_high_4_fakes.",
        plan=lambda: PhasePlan.uniform(1),
        economy=_fakes(4),
    ),
    "phased_tuned": Scheme(
        summary="Phased DMD as searched for on the mixture: cuts where modes are decided, updates "
        "where errors arise, eight rollouts an update, higher rates.",
        plan=lambda: PhasePlan.from_timesteps([1, 0.55, 0.35, 0.18, 0]),
        share=(1, 1, 2, 3),
        accumulate=8,
        rates=(3e-3, 1e-3),
    ),
}
"""Every scheme by name."""
