r"""f-divergences within a subinterval.

The generator's output is diffused, :math:`x_t = a x_s + b \varepsilon`. With the density ratio
:math:`r = p^{real}_t / p^{fake}_t` and a convex :math:`f`, :math:`f(1) = 0`,

.. math::
    D_f = \mathbb E_{x_t \sim fake}[f(r(x_t))], \qquad
    \nabla_{x_s} D_f = a \, h(r) \, (S^{fake}(x_t) - S^{real}(x_t)), \qquad
    h(r) = r^2 f''(r).

That is distribution matching's step, the reverse KL's, weighted for each sample: the divergence
decides how much a sample counts that the teacher finds likely (:math:`r` large) or unlikely.

The :mod:`~pdmd.objectives.divergences` come as objects, and so does the :class:`DensityRatio`.
``docs/derivations/divergences.md`` has the steps.

References:
    Xu et al., One-step Diffusion Models with f-Divergence Distribution Matching,
    arXiv:2502.15681, Theorem 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch import Tensor, nn

from pdmd.diffusion.predictions import Prediction
from pdmd.distillation.phases import Phase
from pdmd.objectives.base import Models, Objective, Rollout
from pdmd.objectives.distribution_matching import (
    DistributionMatching,
    Normalised,
    ScoreDifferenceWeighting,
)
from pdmd.objectives.divergences import BatchNormalised, Divergence, JensenShannon
from pdmd.objectives.time_samplers import TimeSampler, UniformTimes
from pdmd.registry import Registry
from pdmd.typing import Condition, Latents, expand

__all__ = [
    "Bounded",
    "CriticRatio",
    "Density",
    "DensityRatio",
    "ExactRatio",
    "FDivergence",
    "RatioWeighted",
    "density_ratios",
]


class DensityRatio(ABC):
    r"""The log-ratio of the teacher's density to the student's, both diffused to a time."""

    @abstractmethod
    def __call__(self, x_t: Latents, t: Tensor, condition: Condition) -> Tensor:
        r"""Returns :math:`\log r`, with shape :math:`(B)`.

        Args:
            x_t: The student's samples diffused to :math:`t`, with shape :math:`(B, *)`.
            t: Times, float64, with shape :math:`(B)`.
            condition: A TensorDict with batch size :math:`(B)`, or ``None``.
        """

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={type(v).__name__}" for k, v in vars(self).items())
        return f"{type(self).__name__}({arguments})"


class Density(Protocol):
    """A law whose diffused log-density is known, such as the mixture teacher's."""

    def log_prob(self, x: Latents, t: Tensor, condition: Condition) -> Tensor:
        """Returns the log-density of samples at times of shape (B), with shape :math:`(B)`."""
        ...


class ExactRatio(DensityRatio):
    """The ratio of two known densities.

    Args:
        real: The teacher's law.
        fake: The student's.
    """

    def __init__(self, real: Density, fake: Density) -> None:
        self.real = real
        self.fake = fake

    def __call__(self, x_t: Latents, t: Tensor, condition: Condition) -> Tensor:
        real = self.real.log_prob(x_t, t, condition)
        return (real - self.fake.log_prob(x_t, t, condition)).double()


class CriticRatio(DensityRatio):
    r"""The ratio that a critic has learned: its logit.

    The minimiser of the logistic loss, on as many diffused samples of the teacher's law as of the
    student's, is :math:`\log r`. The critic is trained elsewhere, such as by an adversarial
    objective, and never here.

    Args:
        critic: A module called as ``critic(x_t, t, condition)`` that returns logits of "real",
            with shape :math:`(B)`.
    """

    def __init__(self, critic: nn.Module) -> None:
        self.critic = critic

    @torch.no_grad()
    def __call__(self, x_t: Latents, t: Tensor, condition: Condition) -> Tensor:
        return self.critic(x_t, t, condition)


class Bounded(DensityRatio):
    r"""A ratio with :math:`\log r` clamped to :math:`[-c, c]`, for a critic that is too sure.

    Args:
        ratio: The ratio.
        limit: :math:`c`.

    Raises:
        ValueError: If the limit is not positive.
    """

    def __init__(self, ratio: DensityRatio, limit: float = 10.0) -> None:
        if not limit > 0:
            raise ValueError(f"the bound of log r must be positive, got {limit}; use 10")
        self.ratio = ratio
        self.limit = float(limit)

    def __call__(self, x_t: Latents, t: Tensor, condition: Condition) -> Tensor:
        return self.ratio(x_t, t, condition).clamp(-self.limit, self.limit)

    def __repr__(self) -> str:
        return f"Bounded({self.ratio!r}, limit={self.limit})"


class RatioWeighted(ScoreDifferenceWeighting):
    r"""The step of another gap weight, times :math:`h(r)`.

    Args:
        weight: Turns the gap of scores into the reverse KL's step.
        divergence: Turns the ratio into :math:`h`.
        ratio: The density ratio.
        condition: The samples' conditions, which the ratio is asked with.
    """

    def __init__(
        self,
        weight: ScoreDifferenceWeighting,
        divergence: Divergence,
        ratio: DensityRatio,
        condition: Condition = None,
    ) -> None:
        self.weight = weight
        self.divergence = divergence
        self.ratio = ratio
        self.condition = condition

    def __call__(self, x_s: Latents, s: float, fake: Prediction, real: Prediction) -> Latents:
        t = torch.as_tensor(fake.t, dtype=torch.float64).expand(len(x_s))
        log_r = self.ratio(fake.x_t, t, self.condition)
        if log_r.shape != t.shape:
            raise ValueError(
                f"a density ratio returns one log r for each of {len(x_s)} samples, got shape "
                f"{tuple(log_r.shape)} from {self.ratio!r}; reduce it to shape ({len(x_s)},)"
            )
        log_r = log_r.to(torch.promote_types(log_r.dtype, torch.float32))
        _check_finite(log_r, t, "log r", "bound it, as in Bounded(ratio, limit=10)")
        h = self.divergence.h(log_r)
        remedy = "normalise it, as in BatchNormalised(divergence), or bound the ratio"
        _check_finite(h, t, "the weight h(r)", remedy)
        return expand(h, x_s) * self.weight(x_s, s, fake, real)


def _check_finite(value: Tensor, t: Tensor, name: str, remedy: str) -> None:
    bad = ~value.isfinite()
    if bool(bad.any()):
        i = int(bad.nonzero()[0])
        raise ValueError(
            f"{name} is {value[i].item()} at t = {t[i].item():.4g}; {remedy}, or raise the time "
            "margin, as in UniformTimes(margin=0.1)"
        )


class FDivergence(Objective):
    r"""Moves the generator's output towards the teacher's distribution by an f-divergence.

    With :class:`~pdmd.objectives.divergences.ReverseKL` it is
    :class:`~pdmd.objectives.distribution_matching.DistributionMatching`, draw for draw. With
    :class:`~pdmd.objectives.distribution_matching.ExactKL` as the weight and a divergence that is
    not normalised, the expected step is the divergence's gradient. A guided teacher's score
    belongs to no density, so there :math:`h` is a weight and no more.

    Args:
        ratio: The density ratio at :math:`x_t`.
        divergence: The divergence; Jensen-Shannon, normalised over the batch as in the paper, by
            default.
        weight: Turns the gap of scores into the step that :math:`h` scales;
            :class:`~pdmd.objectives.distribution_matching.Normalised` by default.
        times: Draws :math:`t`; uniform over the score range by default.
        name: The loss's name.

    References:
        Xu et al., One-step Diffusion Models with f-Divergence Distribution Matching,
        arXiv:2502.15681.
    """

    def __init__(
        self,
        ratio: DensityRatio,
        divergence: Divergence | None = None,
        weight: ScoreDifferenceWeighting | None = None,
        times: TimeSampler | None = None,
        name: str = "f_divergence",
    ) -> None:
        self.ratio = ratio
        self.divergence = divergence or BatchNormalised(JensenShannon())
        self.weight = weight or Normalised()
        self.times = times or UniformTimes()
        self.name = name

    def losses(
        self, models: Models, rollout: Rollout, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Computes the pseudo-target loss, whose gradient on the mean of x_s is the step.

        Raises:
            ValueError: If a ratio or a weight is not finite, with the time at which it is not.
        """
        step = RatioWeighted(self.weight, self.divergence, self.ratio, rollout.condition)
        return DistributionMatching(step, self.times, self.name).losses(models, rollout, generator)

    def time_bounds(self, phase: Phase) -> tuple[float, float]:
        """Returns the times at which the teacher is asked."""
        return self.times.bounds(phase)


density_ratios: Registry[type[DensityRatio]] = Registry(
    "density ratio",
    {
        "critic": "pdmd.objectives.f_divergence:CriticRatio",
        "exact": "pdmd.objectives.f_divergence:ExactRatio",
        "bounded": "pdmd.objectives.f_divergence:Bounded",
    },
)
