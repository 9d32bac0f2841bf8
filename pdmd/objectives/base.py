r"""Objectives: named scalar losses of the models of one phase.

An objective maps the models of phase :math:`k` and a rollout :math:`x_s`, :math:`s = t_k`, to
losses :math:`L_i`, and the trainer minimises their sum. Objectives are linear: ``a + 0.05 * b``
has the losses of ``a`` and those of ``b`` times 0.05. They depend on no trainer, file or device.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from pdmd.arguments import checked, describe
from pdmd.distillation.phases import Phase, PhasePlan
from pdmd.objectives.loss_checks import check_losses
from pdmd.objectives.phase_models import DrawConditions, Models, PhaseContext, Rollout
from pdmd.registry import Registry

__all__ = [
    "DrawConditions",
    "Models",
    "Objective",
    "OnlyPhases",
    "PhaseContext",
    "Rollout",
    "WeightedSum",
    "objectives",
]


class Objective(ABC):
    """Maps the models of a phase and a rollout to named losses.

    A subclass sets a ``name`` and implements :meth:`losses`; one that needs something per phase,
    such as a discriminator, also overrides :meth:`on_phase_start`::

        class PosteriorDistance(Objective):
            name = "posterior_distance"

            def losses(self, models, rollout, generator):
                x_s, s = rollout.x_s, rollout.phase.t_end
                x_0 = models.real(x_s, s, rollout.condition).to("x0")
                return {self.name: (x_0 - x_s).square().mean()}

            def time_bounds(self, phase):  # where the teacher is evaluated
                return phase.t_end, phase.t_end

    Objectives add and scale: ``DistributionMatching() + 0.05 * PosteriorDistance()``.

    Sampled times come from :meth:`~pdmd.objectives.time_samplers.TimeSampler.sample`, so that one
    network of a routed teacher is evaluated. At other times that differ between rows, all of its
    networks are.

    Attributes:
        name: The name of the objective and of its loss, unique within a sum; that of the class by
            default.
    """

    name: str

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if not hasattr(cls, "name") and "name" not in inspect.get_annotations(cls):
            cls.name = cls.__name__
        if "losses" in vars(cls):  # their arguments are checked in every objective
            cls.losses = checked(cls.losses)

    @abstractmethod
    def losses(
        self, models: Models, rollout: Rollout, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Computes the losses.

        Args:
            models: The denoisers of the phase.
            rollout: The student's samples.
            generator: The source of randomness.

        Returns:
            Scalar float32 losses by name, whose sum is minimised.
        """

    def time_bounds(self, phase: Phase) -> tuple[float, float] | None:
        """Returns the lowest and highest time at which :meth:`losses` evaluates the teacher.

        ``None`` if it does not evaluate the teacher.
        """
        return None

    def covers(self, plan: PhasePlan) -> set[int]:
        """Returns the numbers, from 1, of the phases in which the objective has a loss.

        Raises:
            ValueError: If the objective is limited to a phase that the plan does not have.
        """
        return {phase.number for phase in plan}

    def shared(self, phase: Phase) -> tuple[object, ...]:
        """Returns what the objective has in common with that of the other role in a phase.

        These are the critics that it evaluates or trains there. A discriminator trains in the
        phases in which the generator's objective has its critics here.
        """
        return ()

    def on_distillation_start(self, plan: PhasePlan, other: Objective) -> None:
        """Prepares the objective for a distillation, before its first phase.

        Args:
            plan: The phases.
            other: The other role's objective: for the fake score's, that of the generator.
        """
        return

    def on_phase_start(self, context: PhaseContext, generator: torch.Generator) -> None:
        """Prepares the objective for a phase, before the phase's first losses.

        A run that resumes within a phase calls this again with a generator in the same state: the
        result must depend on the arguments alone.

        Args:
            context: The phase, its models and its conditions.
            generator: The source of randomness, for this call only.
        """
        return

    def networks(self, phase: Phase) -> dict[str, nn.Module]:
        """Returns the objective's trainable networks of a phase, by name.

        They exist after :meth:`on_phase_start`, and train under the fake score's optimizer if the
        objective is part of the fake score's.
        """
        return {}

    def diagnostics(self) -> dict[str, Tensor]:
        """Returns detached scalars or vectors to record of the last :meth:`losses`, by name."""
        return {}

    @checked
    def only(self, *phases: int) -> OnlyPhases:
        """Limits the objective to some phases.

        Args:
            phases: Numbers of phases, counted from 1, the noisiest.

        Raises:
            ValueError: If there are no phases, or one is below 1.
        """
        return OnlyPhases(self, phases)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all terms; the class's name for an objective without one."""
        return (getattr(self, "name", type(self).__name__),)

    @property
    def named_phases(self) -> tuple[tuple[str, frozenset[int] | None], ...]:
        """The name of each term, with the phases it is limited to; ``None`` for all phases."""
        return tuple((name, None) for name in self.names)

    def __add__(self, other: Objective) -> WeightedSum:
        return WeightedSum([*_terms(self), *_terms(other)])

    def __radd__(self, other: object) -> Objective:
        if isinstance(other, int) and other == 0:  # where Python's sum() starts
            return self
        return NotImplemented

    def __neg__(self) -> WeightedSum:
        return -1.0 * self

    def __sub__(self, other: Objective) -> WeightedSum:
        return self + WeightedSum([(-weight, term) for weight, term in _terms(other)])

    def __truediv__(self, divisor: float) -> WeightedSum:
        if isinstance(divisor, bool) or not isinstance(divisor, Real):
            raise TypeError(f"objectives are divided by numbers, got {describe(divisor)}")
        if divisor == 0:
            raise ValueError(f"{self.name!r} is divided by {divisor}; use another number")
        return self * (1 / float(divisor))

    def __mul__(self, weight: float) -> WeightedSum:
        if isinstance(weight, bool) or not isinstance(weight, Real):
            raise TypeError(
                f"a weight is a number, got {describe(weight)}; multiply an objective by a float"
            )
        return WeightedSum([(weight * w, term) for w, term in _terms(self)])

    __rmul__ = __mul__

    def __repr__(self) -> str:
        arguments = ", ".join(
            f"{k}={getattr(v, '__name__', None) or repr(v)}"
            for k, v in vars(self).items()
            if k != "name" and not k.startswith("_")
        )
        return f"{type(self).__name__}({arguments})"


@checked
class WeightedSum(Objective):
    """A weighted sum of objectives, with distinct names in every phase.

    Args:
        terms: Pairs of weight and objective.

    Raises:
        ValueError: If a name occurs twice in a phase, a weight is not finite, or there are no
            terms.
    """

    name = "sum"

    def __init__(self, terms: Sequence[tuple[float, Objective]]) -> None:
        if not terms:
            raise ValueError("a weighted sum requires at least one objective")
        seen: list[tuple[str, frozenset[int] | None]] = []
        for weight, term in terms:
            if isinstance(weight, bool) or not isinstance(weight, Real):
                raise TypeError(f"a weight is a number, got {describe(weight)}")
            _terms(term)
            if not math.isfinite(weight):
                raise ValueError(f"the weight of {term.name!r} is {weight}; use a finite number")
            for name, phases in term.named_phases:
                for other, others in seen:
                    if name == other and (phases is None or others is None or phases & others):
                        raise ValueError(
                            f"two objectives are named {name!r}; give one of them another name, "
                            "as in name='other', or limit them to different phases with only()"
                        )
                seen.append((name, phases))
        self.terms = tuple((float(weight), term) for weight, term in terms)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all terms."""
        return tuple(dict.fromkeys(name for _, term in self.terms for name in term.names))

    @property
    def named_phases(self) -> tuple[tuple[str, frozenset[int] | None], ...]:
        """The name of each term, with the phases it is limited to."""
        return tuple(pair for _, term in self.terms for pair in term.named_phases)

    def losses(
        self, models: Models, rollout: Rollout, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Computes the losses of all terms, each times its weight."""
        out: dict[str, Tensor] = {}
        for weight, term in self.terms:
            losses = term.losses(models, rollout, generator)
            check_losses(f"{term.name!r} ({type(term).__name__})", losses, rollout.phase)
            for name, value in losses.items():
                if name in out:
                    raise ValueError(
                        f"two objectives return a loss named {name!r}, the second is "
                        f"{term.name!r}; return losses under self.name"
                    )
                out[name] = weight * value
        return out

    def time_bounds(self, phase: Phase) -> tuple[float, float] | None:
        """Returns the lowest and highest time of all terms."""
        bounds = [b for _, term in self.terms if (b := term.time_bounds(phase)) is not None]
        return (min(b[0] for b in bounds), max(b[1] for b in bounds)) if bounds else None

    def covers(self, plan: PhasePlan) -> set[int]:
        return set().union(*(term.covers(plan) for _, term in self.terms))

    def shared(self, phase: Phase) -> tuple[object, ...]:
        return tuple(item for _, term in self.terms for item in term.shared(phase))

    def on_distillation_start(self, plan: PhasePlan, other: Objective) -> None:
        for _, term in self.terms:
            term.on_distillation_start(plan, other)

    def on_phase_start(self, context: PhaseContext, generator: torch.Generator) -> None:
        for _, term in self.terms:
            term.on_phase_start(context, generator)

    def networks(self, phase: Phase) -> dict[str, nn.Module]:
        return {name: n for _, term in self.terms for name, n in term.networks(phase).items()}

    def diagnostics(self) -> dict[str, Tensor]:
        return {name: m for _, term in self.terms for name, m in term.diagnostics().items()}

    def __repr__(self) -> str:
        return " + ".join(f"{w:g} * {term!r}" if w != 1 else repr(term) for w, term in self.terms)


@checked
class OnlyPhases(Objective):
    """An objective limited to some phases, without losses in the others.

    Args:
        objective: The objective.
        phases: Numbers of the phases with losses, counted from 1, the noisiest.

    Raises:
        ValueError: If there are no phases, or one is below 1.
    """

    def __init__(self, objective: Objective, phases: Sequence[int]) -> None:
        if not phases:
            raise ValueError(f"pass at least one phase to limit {objective.name!r} to")
        if min(phases) < 1:
            raise ValueError(
                f"phases are counted from 1, got {tuple(phases)} for {objective.name!r}; 1 is the "
                "noisiest"
            )
        self.objective = objective
        self.phases = tuple(phases)
        self.name = objective.name
        self._active = False

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all terms."""
        return self.objective.names

    @property
    def named_phases(self) -> tuple[tuple[str, frozenset[int] | None], ...]:
        """The name of each term, with the phases it is limited to."""
        own = frozenset(self.phases)
        return tuple(
            (name, own if phases is None else own & phases)
            for name, phases in self.objective.named_phases
        )

    def losses(
        self, models: Models, rollout: Rollout, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Computes the objective's losses in its phases; none in the others."""
        self._active = rollout.phase.number in self.phases
        if not self._active:
            return {}
        return self.objective.losses(models, rollout, generator)

    def time_bounds(self, phase: Phase) -> tuple[float, float] | None:
        return self.objective.time_bounds(phase) if phase.number in self.phases else None

    def covers(self, plan: PhasePlan) -> set[int]:
        if max(self.phases) > len(plan):
            raise ValueError(
                f"{self.name!r} is limited to phases {self.phases}, but the plan has {len(plan)}; "
                "phases are counted from 1"
            )
        return {*self.phases} & self.objective.covers(plan)

    def shared(self, phase: Phase) -> tuple[object, ...]:
        return self.objective.shared(phase) if phase.number in self.phases else ()

    def on_distillation_start(self, plan: PhasePlan, other: Objective) -> None:
        self.objective.on_distillation_start(plan, other)

    def on_phase_start(self, context: PhaseContext, generator: torch.Generator) -> None:
        if context.phase.number in self.phases:
            self.objective.on_phase_start(context, generator)

    def networks(self, phase: Phase) -> dict[str, nn.Module]:
        return self.objective.networks(phase) if phase.number in self.phases else {}

    def diagnostics(self) -> dict[str, Tensor]:
        return self.objective.diagnostics() if self._active else {}

    def __repr__(self) -> str:
        return f"({self.objective!r}).only({', '.join(map(str, self.phases))})"


def _terms(objective: Objective) -> tuple[tuple[float, Objective], ...]:
    if not isinstance(objective, Objective):
        raise TypeError(
            f"expected an instance of Objective to add, got {describe(objective)}; add "
            "objectives, as in DistributionMatching() + 0.1 * Repulsion()"
        )
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
        "discriminator": "pdmd.objectives.adversarial:DiscriminatorLoss",
        "repulsion": "pdmd.objectives.diversity:Repulsion",
        "noise_sensitivity": "pdmd.objectives.diversity:NoiseSensitivity",
    },
)
