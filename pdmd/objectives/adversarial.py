r"""Adversarial losses within a subinterval.

Student and real samples :math:`x_s` are diffused to the same :math:`t`, where a critic :math:`h`
minimises the logistic loss

.. math:: L_h = \mathbb E_{real}\, \mathrm{softplus}(-h(x_t)) +
    \mathbb E_{fake}\, \mathrm{softplus}(h(x_t)) + \tfrac{\gamma}{2}
    \mathbb E_{real} \|\nabla_{x_t} h\|^2 .

Without the penalty, the pointwise condition :math:`p^{fake}_t \varsigma(h) = p^{real}_t
\varsigma(-h)`, :math:`\varsigma` the sigmoid, gives the optimum :math:`h^* = \log p^{real}_t -
\log p^{fake}_t`. The generator minimises :math:`\mathbb E\, \mathrm{softplus}(-h(a x_s + b
\varepsilon))`, whose gradient in :math:`x_s` at :math:`h^*` is

.. math:: \varsigma(-h^*)\; a\, (S^{fake}_t - S^{real}_t),

the step of distribution matching weighted by :math:`p^{fake}_t / (p^{real}_t + p^{fake}_t)`.

References:
    Yin et al., DMD2, arXiv:2405.14867, Section 4.3; Goodfellow et al., Generative Adversarial
    Networks, arXiv:1406.2661, Section 3 (the non-saturating loss); Mescheder et al.,
    arXiv:1801.04406, Eq. 9 (R1).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import softplus

from pdmd.arguments import checked
from pdmd.diffusion.solvers import diffuse
from pdmd.distillation.phases import Phase, PhasePlan
from pdmd.objectives.base import Models, Objective, PhaseContext, Rollout
from pdmd.objectives.critics import Critic, Critics
from pdmd.objectives.real_samples import DrawSamples, PerPhase, RealSamples, TeacherSamples
from pdmd.objectives.time_samplers import TimeSampler, UniformTimes
from pdmd.randomness import randn_like
from pdmd.registry import Registry
from pdmd.typing import Condition, Latents

__all__ = [
    "Adversarial",
    "DiscriminatorLoss",
    "FiniteDifferenceR1",
    "Penalty",
    "R1",
    "logistic_loss",
    "penalties",
]


def logistic_loss(real: Tensor, fake: Tensor) -> Tensor:
    r"""Returns :math:`\mathrm{softplus}(-h^{real}) + \mathrm{softplus}(h^{fake})` elementwise.

    Args:
        real: Logits of real samples.
        fake: Logits of student samples, of the same shape.
    """
    return softplus(-real) + softplus(fake)


class Penalty(ABC):
    """A penalty on the critic's gradient at real samples.

    Attributes:
        second_derivatives: Whether it differentiates the critic's gradient, which sharded networks
            do not support.
    """

    second_derivatives = False

    @abstractmethod
    def __call__(
        self,
        critic: Critic,
        x_t: Latents,
        t: Tensor,
        condition: Condition,
        generator: torch.Generator,
    ) -> Tensor:
        """Returns the penalty of each sample, with shape :math:`(B)`.

        Args:
            critic: The critic.
            x_t: Real samples at times ``t``, with shape :math:`(B, *)`.
            t: Times, float64, with shape :math:`(B)`.
            condition: A TensorDict with batch size :math:`(B)`, or ``None``.
            generator: The source of randomness.
        """

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in vars(self).items())
        return f"{type(self).__name__}({arguments})"


class R1(Penalty):
    r"""The squared gradient norm :math:`\|\nabla_{x_t} h\|^2`, by double backpropagation.

    Attention then runs unfused, since fused kernels have no second derivative. Where its memory is
    too large, a network has custom kernels, or is sharded over ranks, use
    :class:`FiniteDifferenceR1`.

    References:
        Mescheder et al., Which Training Methods for GANs do actually Converge?,
        arXiv:1801.04406, Eq. 9.
    """

    second_derivatives = True

    def __call__(
        self,
        critic: Critic,
        x_t: Latents,
        t: Tensor,
        condition: Condition,
        generator: torch.Generator,
    ) -> Tensor:
        x_t = x_t.detach().requires_grad_(True)
        with sdpa_kernel(SDPBackend.MATH):
            logits = critic(x_t, t, condition)
        (slope,) = torch.autograd.grad(logits.sum(), x_t, create_graph=True)
        return slope.flatten(1).square().sum(1)


@checked
class FiniteDifferenceR1(Penalty):
    r"""R1 by finite differences, for networks that cannot be differentiated twice.

    .. math:: \frac{(h(x_t + \delta u) - h(x_t))^2}{\delta^2}, \qquad u \sim \mathcal N(0, I),

    whose mean over :math:`u` is :math:`\|\nabla h\|^2 + O(\delta^2)`.

    Args:
        delta: :math:`\delta`, the perturbation's standard deviation.

    Raises:
        ValueError: If ``delta`` is not positive.

    References:
        Lin et al., Seaweed-APT, arXiv:2501.08316, Section 3.4 (without the division).
    """

    def __init__(self, delta: float = 0.01) -> None:
        if not delta > 0:
            raise ValueError(f"delta must be positive, got {delta}")
        self.delta = float(delta)

    def __call__(
        self,
        critic: Critic,
        x_t: Latents,
        t: Tensor,
        condition: Condition,
        generator: torch.Generator,
    ) -> Tensor:
        x_t = x_t.detach()
        perturbed = x_t + self.delta * randn_like(x_t, generator)
        change = critic(perturbed, t, condition) - critic(x_t, t, condition)
        return (change / self.delta).square()


@checked
class Adversarial(Objective):
    r"""The generator's non-saturating adversarial loss, :math:`\mathrm{softplus}(-h(x_t))`.

    Add it with a small weight to distribution matching, and :class:`DiscriminatorLoss` with the
    same critics to the fake score's objective::

        critics = Critics(lambda models, phase, example: FeatureCritic(models.real, example))
        distill(..., generator_objective=DistributionMatching() + 0.01 * Adversarial(critics),
                fake_objective=SubintervalScoreMatching() + DiscriminatorLoss(critics))

    Args:
        critics: The critics, trained by a :class:`DiscriminatorLoss`.
        times: Samples :math:`t`; uniform over the score range by default.
        name: The loss's name.

    References:
        Yin et al., DMD2, arXiv:2405.14867, Section 4.3.
    """

    def __init__(
        self, critics: Critics, times: TimeSampler | None = None, name: str = "adversarial"
    ) -> None:
        self.critics = critics
        self.times = times or UniformTimes()
        self.name = name

    def losses(
        self, models: Models, rollout: Rollout, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Computes the mean of softplus(-logit) on the diffused output."""
        x_s, phase, schedule = rollout.x_s, rollout.phase, models.fake.schedule
        drawn = self.times.sample(len(x_s), phase, (models.fake, models.real), generator)
        x_t = diffuse(x_s, randn_like(x_s, generator), phase.t_end, drawn.t, schedule)
        logits = self.critics.of(phase)(x_t, drawn.t, rollout.condition)
        return {self.name: drawn.weighted(softplus(-logits).mean().float())}

    def time_bounds(self, phase: Phase) -> tuple[float, float]:
        """Returns the lowest and highest sampled time, since a critic may evaluate the teacher."""
        return self.times.bounds(phase)

    def shared(self, phase: Phase) -> tuple[object, ...]:
        """Returns the critics."""
        return (self.critics,)


@checked
class DiscriminatorLoss(Objective):
    r"""The critics' logistic loss and gradient penalty, as part of the fake score's objective.

    A new critic is created in every phase of every distillation. Real and student samples of one
    update share times. The critics train in the phases in which the generator's objective
    evaluates them, ``Adversarial(critics).only(2)`` in the second alone, and in all phases if it
    never does.

    Args:
        critics: The critics, shared with the generator's :class:`Adversarial`.
        real_samples: The real samples; of the teacher's probability flow by default.
        penalty: The gradient penalty; :class:`R1` by default.
        penalty_weight: :math:`\gamma`, the weight of the penalty; 0 for no penalty.
        times: Samples :math:`t`, as the generator's :class:`Adversarial` does; uniform over the
            score range by default.
        name: The loss's name; the penalty is named ``<name>_penalty``.

    Raises:
        ValueError: If ``penalty_weight`` is negative or not finite.

    References:
        Yin et al., DMD2, arXiv:2405.14867, Section 4.3; Mescheder et al., arXiv:1801.04406, Eq. 9.
    """

    def __init__(
        self,
        critics: Critics,
        real_samples: RealSamples | None = None,
        penalty: Penalty | None = None,
        penalty_weight: float = 0.1,
        times: TimeSampler | None = None,
        name: str = "discriminator",
    ) -> None:
        if not (math.isfinite(penalty_weight) and penalty_weight >= 0):
            raise ValueError(f"penalty_weight must be finite and >= 0, got {penalty_weight}")
        self.critics = critics
        self.real_samples = real_samples or TeacherSamples()
        self.penalty = penalty or R1()
        self.penalty_weight = float(penalty_weight)
        self.times = times or UniformTimes()
        self.name = name
        self._draws: PerPhase[DrawSamples] = PerPhase(
            "real samples", "call on_phase_start with this phase before its losses"
        )
        self._numbers: frozenset[int] | None = None  # of the phases that evaluate the critics

    def on_distillation_start(self, plan: PhasePlan, other: Objective) -> None:
        """Removes earlier critics, and takes the phases in which the generator evaluates them."""
        self.critics.clear()
        self._draws.clear()
        numbers = {phase.number for phase in plan if self.critics in other.shared(phase)}
        self._numbers = frozenset(numbers) or None

    def _trains(self, phase: Phase) -> bool:
        return self._numbers is None or phase.number in self._numbers

    def covers(self, plan: PhasePlan) -> set[int]:
        return {phase.number for phase in plan if self._trains(phase)}

    def shared(self, phase: Phase) -> tuple[object, ...]:
        """Returns the critics, in the phases in which they train."""
        return (self.critics,) if self._trains(phase) else ()

    def on_phase_start(self, context: PhaseContext, generator: torch.Generator) -> None:
        """Creates the phase's critic and its source of real samples."""
        if not self._trains(context.phase):
            return
        example = context.draw_conditions(2, generator)
        self.critics.create(context.models, context.phase, example, generator)
        self._draws.set(context.phase, self.real_samples.prepare(context, generator))

    def networks(self, phase: Phase) -> dict[str, nn.Module]:
        """Returns the phase's critic."""
        if not self._trains(phase):
            return {}
        return {f"{self.name}_{phase.index}": self.critics.of(phase)}

    def losses(
        self, models: Models, rollout: Rollout, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Computes the logistic loss and the penalty."""
        if not self._trains(rollout.phase):
            return {}
        x_fake, phase, schedule = rollout.x_s.detach(), rollout.phase, models.fake.schedule
        critic = self.critics.of(phase)
        x_real, condition = self._draws.get(phase)(len(x_fake), generator)
        drawn = self.times.sample(len(x_fake), phase, (models.fake, models.real), generator)
        t, s = drawn.t, phase.t_end
        real_t = diffuse(x_real, randn_like(x_real, generator), s, t, schedule)
        fake_t = diffuse(x_fake, randn_like(x_fake, generator), s, t, schedule)
        loss = logistic_loss(critic(real_t, t, condition), critic(fake_t, t, rollout.condition))
        out = {self.name: drawn.weighted(loss.mean().float())}
        if self.penalty_weight:
            penalty = self.penalty(critic, real_t, t, condition, generator).mean()
            penalty = (0.5 * self.penalty_weight * penalty).float()
            out[f"{self.name}_penalty"] = drawn.weighted(penalty)
        return out

    def time_bounds(self, phase: Phase) -> tuple[float, float] | None:
        """Returns the lowest and highest time of the losses and of the real samples' flow."""
        if not self._trains(phase):
            return None
        low, high = self.times.bounds(phase)
        lowest = self.real_samples.lowest_time(phase)
        return (low, high) if lowest is None else (min(low, lowest), 1.0)

    def __repr__(self) -> str:
        return (
            f"DiscriminatorLoss({self.critics!r}, {self.real_samples!r}, {self.penalty!r}, "
            f"penalty_weight={self.penalty_weight:g}, times={self.times!r})"
        )


penalties: Registry[type[Penalty]] = Registry(
    "penalty",
    {
        "r1": "pdmd.objectives.adversarial:R1",
        "finite_difference_r1": "pdmd.objectives.adversarial:FiniteDifferenceR1",
    },
)
