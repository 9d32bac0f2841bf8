"""Objectives: named losses of the models of one phase.

An objective compares denoisers on what a rollout produced. It knows nothing of trainers, files or
devices, and composes in Python: ``a + 0.05 * b``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from pdmd.diffusion.denoisers import Denoiser
from pdmd.distillation.phases import Phase, PhasePlan
from pdmd.registry import Registry
from pdmd.typing import Condition, Latents

__all__ = [
    "DrawConditions",
    "Objective",
    "OnlyPhases",
    "PhaseContext",
    "Models",
    "Rollout",
    "WeightedSum",
    "objectives",
]


DrawConditions: TypeAlias = Callable[[int, torch.Generator], Condition]
"""Draws conditions with a given batch size, or ``None``."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Models:
    """The denoisers of a phase.

    Attributes:
        real: The real score: the teacher, frozen.
        fake: The fake score, the online model of the student's distribution.
        expert: The expert's denoiser in training.
    """

    real: Denoiser
    fake: Denoiser
    expert: Denoiser


@dataclass(frozen=True, kw_only=True, eq=False)
class PhaseContext:
    """What an objective may prepare a phase from.

    Attributes:
        models: The denoisers of the phase.
        phase: The phase.
        draw_conditions: Draws conditions with a given batch size, or ``None`` for a teacher
            without.
    """

    models: Models
    phase: Phase
    draw_conditions: DrawConditions


@dataclass(frozen=True, kw_only=True, eq=False)
class Rollout:
    r"""What the student made in one phase.

    Attributes:
        x_s: The phase's output at :math:`s = t_k`, with shape :math:`(B, *)`. It carries the
            generator's gradient in a generator update and none in a fake-score update.
        condition: The conditions, with batch size :math:`(B)`, or ``None``.
        phase: The phase.
        phase_input: The phase's input :math:`x_{t_{k-1}}` that ``x_s`` was made of, with shape
            :math:`(B, *)` and no gradient.
        exit_step: The step, from 0, after which the rollout jumped to :math:`t_k`; ``None`` if it
            took every step.
    """

    x_s: Latents
    condition: Condition
    phase: Phase
    phase_input: Latents | None = None
    exit_step: int | None = None


class Objective(ABC):
    """A named loss over the models of a phase.

    A subclass sets :attr:`name` and implements :meth:`losses`. Objectives add and scale::

        objective = DistributionMatching() + 0.05 * Diversity()
    """

    name: str

    @abstractmethod
    def losses(
        self, models: Models, rollout: Rollout, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Computes the objective's losses.

        Args:
            models: The denoisers of the phase.
            rollout: What the student made.
            generator: The source of randomness.

        Returns:
            Scalar float32 losses by name; their sum is what is minimised.
        """

    def time_bounds(self, phase: Phase) -> tuple[float, float] | None:
        """Returns the times at which the teacher is asked in a phase, ``None`` if it is not."""
        return None

    def covers(self, plan: PhasePlan) -> set[int]:
        """Returns the indices of a plan's phases in which the objective has a loss.

        Raises:
            ValueError: If it is limited to a phase that the plan does not have.
        """
        return set(range(len(plan)))

    def on_phase_start(self, context: PhaseContext, generator: torch.Generator) -> None:
        """Prepares what the objective needs in a phase, such as a discriminator.

        A run that resumes within a phase calls this again with a generator in the same state, so
        the result must depend on the arguments alone.

        Args:
            context: The phase, its denoisers and conditions.
            generator: The source of randomness, for this call only.
        """
        return

    def networks(self, phase: Phase) -> dict[str, nn.Module]:
        """Returns the objective's own networks of a phase that has begun, by name.

        They train with the fake score, under its optimizer, on the fake score's objective.
        """
        return {}

    def measures(self) -> dict[str, Tensor]:
        """Returns figures of the last :meth:`losses` that are no losses, detached, by name."""
        return {}

    def only(self, *phases: int) -> OnlyPhases:
        """Limits the objective to some phases.

        Args:
            phases: Indices of phases, 0 for the noisiest.
        """
        return OnlyPhases(self, phases)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the objectives within."""
        return (self.name,)

    def __add__(self, other: Objective) -> WeightedSum:
        return WeightedSum([*_terms(self), *_terms(other)])

    def __mul__(self, weight: float) -> WeightedSum:
        return WeightedSum([(weight * w, term) for w, term in _terms(self)])

    __rmul__ = __mul__

    def __repr__(self) -> str:
        arguments = ", ".join(
            f"{k}={getattr(v, '__name__', None) or repr(v)}"
            for k, v in vars(self).items()
            if k != "name" and not k.startswith("_")
        )
        return f"{type(self).__name__}({arguments})"


class WeightedSum(Objective):
    """A weighted sum of objectives with distinct names.

    Args:
        terms: Pairs of weight and objective.

    Raises:
        ValueError: If a name occurs twice, a weight is not finite, or there are no terms.
    """

    name = "sum"

    def __init__(self, terms: Sequence[tuple[float, Objective]]) -> None:
        if not terms:
            raise ValueError("a weighted sum needs at least one objective")
        seen: set[str] = set()
        for weight, term in terms:
            if not math.isfinite(weight):
                raise ValueError(f"the weight of {term.name!r} is {weight}; use a finite number")
            for name in term.names:
                if name in seen:
                    raise ValueError(
                        f"two objectives are named {name!r}; give one another name when it is "
                        "made, with name='other'"
                    )
                seen.add(name)
        self.terms = tuple((float(weight), term) for weight, term in terms)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the objectives within."""
        return tuple(name for _, term in self.terms for name in term.names)

    def losses(
        self, models: Models, rollout: Rollout, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Computes every term, scaled by its weight."""
        out: dict[str, Tensor] = {}
        for weight, term in self.terms:
            for name, value in term.losses(models, rollout, generator).items():
                if name in out:
                    raise ValueError(f"two objectives return a loss named {name!r}")
                out[name] = weight * value
        return out

    def time_bounds(self, phase: Phase) -> tuple[float, float] | None:
        """Returns the hull of the terms' times."""
        bounds = [b for _, term in self.terms if (b := term.time_bounds(phase)) is not None]
        return (min(b[0] for b in bounds), max(b[1] for b in bounds)) if bounds else None

    def covers(self, plan: PhasePlan) -> set[int]:
        return set().union(*(term.covers(plan) for _, term in self.terms))

    def on_phase_start(self, context: PhaseContext, generator: torch.Generator) -> None:
        for _, term in self.terms:
            term.on_phase_start(context, generator)

    def networks(self, phase: Phase) -> dict[str, nn.Module]:
        return {name: n for _, term in self.terms for name, n in term.networks(phase).items()}

    def measures(self) -> dict[str, Tensor]:
        return {name: m for _, term in self.terms for name, m in term.measures().items()}

    def __repr__(self) -> str:
        return " + ".join(f"{w:g} * {term!r}" if w != 1 else repr(term) for w, term in self.terms)


class OnlyPhases(Objective):
    """An objective that counts in some phases and is silent in the others.

    Args:
        objective: The objective.
        phases: Indices of the phases in which it counts, 0 for the noisiest.

    Raises:
        ValueError: If no phase is named, or an index is negative.
    """

    def __init__(self, objective: Objective, phases: Sequence[int]) -> None:
        if not phases or min(phases) < 0:
            raise ValueError(f"name phases by their index from 0, got {tuple(phases)}")
        self.objective = objective
        self.phases = tuple(phases)
        self.name = objective.name

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the objectives within."""
        return self.objective.names

    def losses(
        self, models: Models, rollout: Rollout, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Computes the objective's losses in its phases, none elsewhere."""
        if rollout.phase.index not in self.phases:
            return {}
        return self.objective.losses(models, rollout, generator)

    def time_bounds(self, phase: Phase) -> tuple[float, float] | None:
        return self.objective.time_bounds(phase) if phase.index in self.phases else None

    def covers(self, plan: PhasePlan) -> set[int]:
        if max(self.phases) >= len(plan):
            raise ValueError(
                f"{self.name!r} is limited to the phases {self.phases} by index from 0, but the "
                f"plan has {len(plan)}"
            )
        return set(self.phases) & self.objective.covers(plan)

    def on_phase_start(self, context: PhaseContext, generator: torch.Generator) -> None:
        if context.phase.index in self.phases:
            self.objective.on_phase_start(context, generator)

    def networks(self, phase: Phase) -> dict[str, nn.Module]:
        return self.objective.networks(phase) if phase.index in self.phases else {}

    def measures(self) -> dict[str, Tensor]:
        return self.objective.measures()

    def __repr__(self) -> str:
        return f"({self.objective!r}).only{self.phases}"


def _terms(objective: Objective) -> tuple[tuple[float, Objective], ...]:
    if not isinstance(objective, Objective):
        raise TypeError(f"only objectives add to objectives, got {type(objective).__name__}")
    return objective.terms if isinstance(objective, WeightedSum) else ((1.0, objective),)


objectives: Registry[Any] = Registry(
    "objective",
    {
        "distribution_matching": "pdmd.objectives.distribution_matching:DistributionMatching",
        "score_matching": "pdmd.objectives.score_matching:SubintervalScoreMatching",
        "f_divergence": "pdmd.objectives.f_divergence:FDivergence",
        "fisher_divergence": "pdmd.objectives.fisher:FisherDivergence",
        "trajectory_regression": "pdmd.objectives.regression:TrajectoryRegression",
        "velocity_regression": "pdmd.objectives.regression:VelocityRegression",
        "adversarial": "pdmd.objectives.adversarial:Adversarial",
        "discrimination": "pdmd.objectives.adversarial:DiscriminatorLoss",
        "repulsion": "pdmd.objectives.diversity:Repulsion",
        "noise_sensitivity": "pdmd.objectives.diversity:NoiseSensitivity",
    },
)
