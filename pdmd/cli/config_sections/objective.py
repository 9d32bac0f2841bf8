"""The section ``[objective]``: what generator and fake score minimise.

Both objectives are weighted sums of registered terms, each in all phases or in some::

    [[objective.generator]]
    name = "distribution_matching"

    [[objective.generator]]
    name = "repulsion"
    weight = 0.02
    phases = [1, 2]

The other keys of the section are the arguments of terms that do not set their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any

from torch import nn

from pdmd.cli.composition import Composer
from pdmd.cli.config_sections.critics import SharedCritics
from pdmd.cli.values import Table, Terms, short
from pdmd.distillation.phases import PhasePlan
from pdmd.objectives.base import Objective
from pdmd.objectives.critics import Critics
from pdmd.objectives.distribution_matching import ScoreDifferenceWeighting
from pdmd.objectives.time_samplers import TimeSampler
from pdmd.objectives.weightings import Weighting

__all__ = ["ComposedObjectives", "ObjectiveConfig"]

RESERVED = ("weight", "phases")
"""Keys of a term that are not arguments of its objective."""


@dataclass(frozen=True, kw_only=True)
class ComposedObjectives:
    """The objectives of a configuration.

    Attributes:
        generator: What experts minimise.
        fake: What fake scores minimise.
        follows_phase: Whether a term uses the critic of the phase in training, so that phases
            must train one after the other.
    """

    generator: Objective
    fake: Objective
    follows_phase: bool

    def check(self, plan: PhasePlan) -> None:
        """Checks that both have a loss in every phase, and times to evaluate it.

        Raises:
            ValueError: If one does not.
        """
        for key, objective in (("generator", self.generator), ("fake", self.fake)):
            for number in sorted({phase.number for phase in plan} - objective.covers(plan)):
                raise ValueError(
                    f"objective.{key} has no term in phase {number}; add one, or extend the "
                    "phases of another"
                )
            for phase in plan:
                objective.time_bounds(phase)


@dataclass(kw_only=True)
class ObjectiveConfig:
    """The objectives: sums of registered terms, see 'pdmd objectives'.

    A term is a table: its name, a weight (1 by default), phases counted from 1 (all by default)
    and the arguments of the objective. An argument that is an object is a registered name or a
    table itself. In a TOML file a term is [[objective.generator]] or [[objective.fake]].
    """

    generator: Terms = ({"name": "distribution_matching"},)
    """Terms of the experts' objective, for example {name = "repulsion", weight = 0.02}."""
    fake: Terms = ({"name": "score_matching"},)
    """Terms of the fake score's objective."""
    critic: Table = field(default_factory=lambda: {"name": "features"})
    """The critic of adversarial terms: features or mlp, with its arguments."""
    weight: str = "normalised"
    """Weighting of score differences in terms without one: normalised, exact_kl or posterior."""
    weighting: str = "clamped"
    """Weighting of score matching: clamped, ratio, epsilon, inverse_variance or none."""
    times: Table = field(default_factory=lambda: {"name": "uniform"})
    """Distribution of times in terms without times: uniform, log_snr, shifted or balanced, with
    its arguments, for example {name = "shifted", shift = 7.0}."""
    margin: float = 0.02
    """Fraction of the score range that is excluded at its ends."""
    timestep_samples: int = 1
    """Times and noises at which a sample is compared; more lower the gradient's variance."""

    def build(self) -> tuple[Objective, Objective]:
        """Builds the objectives of generator and fake score.

        Raises:
            ValueError: If a name or argument is unknown, or does not fit.
        """
        composed = self.compose()
        return composed.generator, composed.fake

    def compose(self) -> ComposedObjectives:
        """Builds both objectives, which share their critics.

        Raises:
            ValueError: If a name or argument is unknown, or does not fit, or if a key of the
                section has no effect.
        """
        shared = SharedCritics(self.critic)
        composer = Composer(
            {Critics: shared.critics, nn.Module: shared.phase_critic}, self._defaults()
        )
        generator = _sum(composer, self.generator, "objective.generator")
        fake = _sum(composer, self.fake, "objective.fake")
        self._check_effect(composer, shared)
        return ComposedObjectives(
            generator=generator, fake=fake, follows_phase=shared.follows_phase
        )

    def _defaults(self) -> dict[type, dict[str, Any]]:
        return {
            ScoreDifferenceWeighting: {"": self.weight},
            Weighting: {"": self.weighting},
            TimeSampler: {"": self.times, "margin": self.margin},
            Objective: {"timestep_samples": self.timestep_samples},
        }

    def _check_effect(self, composer: Composer, shared: SharedCritics) -> None:
        unset = ObjectiveConfig()
        effects = {
            "weight": (ScoreDifferenceWeighting, "") in composer.used,
            "weighting": (Weighting, "") in composer.used,
            "times": (TimeSampler, "") in composer.used,
            "margin": (TimeSampler, "margin") in composer.used,
            "timestep_samples": (Objective, "timestep_samples") in composer.used,
            "critic": shared.used,
        }
        for key, effective in effects.items():
            value = getattr(self, key)
            if not effective and value != getattr(unset, key):
                raise ValueError(
                    f"objective.{key} = {short(value)} has no effect, as no term takes it from "
                    "there; remove it, or set it in a term"
                )


def _sum(composer: Composer, terms: Sequence[Any], where: str) -> Objective:
    if not isinstance(terms, list | tuple) or not terms:
        raise ValueError(f"{where} is a list of terms, at least one, got {short(terms)}")
    built: list[Objective] = []
    for i, term in enumerate(terms):
        at = f"{where}[{i + 1}]"
        built.append(_term(composer, term, at))
        try:
            reduce(add, built)
        except ValueError as error:
            raise ValueError(
                f"{at} is named {built[-1].name!r} as a term before it is; give it another "
                "loss_name, or limit them to different phases"
            ) from error
    return reduce(add, built)


def _term(composer: Composer, term: Any, where: str) -> Objective:
    table: dict[str, Any] = dict(term) if isinstance(term, Mapping) else {"name": term}
    weight, phases = table.pop("weight", 1.0), table.pop("phases", ())
    if not isinstance(weight, int | float) or isinstance(weight, bool):
        known = " (the weighting of score differences is 'weighting')"
        raise ValueError(f"{where}.weight is a number, got {short(weight)}{known}")
    objective = composer.build(Objective, table, where, RESERVED)
    try:
        limited = _limited(objective, phases, where)
        return limited if weight == 1 else limited * float(weight)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{where}: {error}") from error


def _limited(objective: Objective, phases: Any, where: str) -> Objective:
    """Limits an objective to phases counted from 1; none of them stands for all."""
    numbers = phases if isinstance(phases, list | tuple) else (phases,)
    for number in numbers:
        if not isinstance(number, int) or isinstance(number, bool) or not number >= 1:
            raise ValueError(f"phases are whole numbers from 1, got {short(phases)}")
    return objective.only(*numbers) if numbers else objective
