r"""f-divergences within a subinterval.

The generator's output is diffused, :math:`x_t = a x_s + b \varepsilon`. With the density ratio
:math:`r = p^{real}_t / p^{fake}_t` and a convex :math:`f`, :math:`f(1) = 0`,

.. math::
    D_f = \mathbb E_{x_t \sim fake}[f(r(x_t))], \qquad
    \nabla_{x_s} D_f = a \, h(r) \, (S^{fake}(x_t) - S^{real}(x_t)), \qquad
    h(r) = r^2 f''(r).

This is the step of distribution matching (reverse KL), weighted per sample: the divergence
determines the weight of samples that are likely (:math:`r` large) or unlikely under the teacher.

The :mod:`~pdmd.objectives.divergences` and the :class:`DensityRatio` are passed as objects.
``docs/derivations/divergences.md`` derives the formulas.

References:
    Xu et al., One-step Diffusion Models with f-Divergence Distribution Matching,
    arXiv:2502.15681, Theorem 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch import Tensor, nn

from pdmd.arguments import checked
from pdmd.diffusion.predictions import Prediction
from pdmd.diffusion.time_intervals import interval_of, within
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
    r"""The log-ratio of the densities of teacher and student, both diffused to a time."""

    @abstractmethod
    def __call__(self, x_t: Latents, t: Tensor, condition: Condition) -> Tensor:
        r"""Returns :math:`\log r`, with shape :math:`(B)`.

        Args:
            x_t: The student's samples diffused to :math:`t`, with shape :math:`(B, *)`.
            t: Times, float64, with shape :math:`(B)`.
            condition: A TensorDict with batch size :math:`(B)`, or ``None``.
        """

    def shared(self) -> tuple[object, ...]:
        """Returns the critics that it evaluates, see :meth:`Objective.shared`."""
        return ()

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={type(v).__name__}" for k, v in vars(self).items())
        return f"{type(self).__name__}({arguments})"


class Density(Protocol):
    """A distribution with a known diffused log-density, such as a mixture teacher."""

    def log_prob(self, x: Latents, t: Tensor, condition: Condition) -> Tensor:
        """Returns the log-density at times of shape :math:`(B)`, with shape :math:`(B)`."""
        ...


class ExactRatio(DensityRatio):
    """The ratio of two known densities.

    Args:
        real: The teacher's distribution.
        fake: The student's distribution.
    """

    def __init__(self, real: Density, fake: Density) -> None:
        self.real = real
        self.fake = fake

    def __call__(self, x_t: Latents, t: Tensor, condition: Condition) -> Tensor:
        real = self.real.log_prob(x_t, t, condition)
        return (real - self.fake.log_prob(x_t, t, condition)).double()


class CriticRatio(DensityRatio):
    r"""The logit of a critic, as an estimate of :math:`\log r`.

    The minimiser of the logistic loss on equally many diffused samples of teacher and student is
    :math:`\log r`. The critic is trained by another objective, such as
    :class:`~pdmd.objectives.adversarial.DiscriminatorLoss`.

    Args:
        critic: A module called as ``critic(x_t, t, condition)`` that returns logits, high for
            real samples, with shape :math:`(B)`.
    """

    def __init__(self, critic: nn.Module) -> None:
        self.critic = critic

    def shared(self) -> tuple[object, ...]:
        """Returns the critics that the critic is one of."""
        critics = getattr(self.critic, "critics", None)
        return () if critics is None else (critics,)

    @torch.no_grad()
    def __call__(self, x_t: Latents, t: Tensor, condition: Condition) -> Tensor:
        return self.critic(x_t, t, condition)


@checked
class Bounded(DensityRatio):
    r"""A ratio with :math:`\log r` clamped to :math:`[-c, c]`, for overconfident critics.

    Args:
        ratio: The ratio.
        limit: :math:`c`.

    Raises:
        ValueError: If ``limit`` is not positive.
    """

    def __init__(self, ratio: DensityRatio, limit: float = 10.0) -> None:
        if not limit > 0:
            raise ValueError(
                f"the limit of log r must be positive, got {limit}; 10 is the default"
            )
        self.ratio = ratio
        self.limit = float(limit)

    def __call__(self, x_t: Latents, t: Tensor, condition: Condition) -> Tensor:
        return self.ratio(x_t, t, condition).clamp(-self.limit, self.limit)

    def shared(self) -> tuple[object, ...]:
        """Returns the critics of the ratio."""
        return self.ratio.shared()

    def __repr__(self) -> str:
        return f"Bounded({self.ratio!r}, limit={self.limit})"


class RatioWeighted(ScoreDifferenceWeighting):
    r"""The step of another score-difference weighting, times :math:`h(r)`.

    Args:
        weighting: Weights the score difference into the step of reverse KL.
        divergence: The divergence, which gives :math:`h`.
        ratio: The density ratio.
        condition: The samples' conditions, passed to the ratio.
    """

    def __init__(
        self,
        weighting: ScoreDifferenceWeighting,
        divergence: Divergence,
        ratio: DensityRatio,
        condition: Condition = None,
    ) -> None:
        self.weighting = weighting
        self.divergence = divergence
        self.ratio = ratio
        self.condition = condition

    def __call__(self, x_s: Latents, s: float, fake: Prediction, real: Prediction) -> Latents:
        t, interval = torch.as_tensor(fake.t, dtype=torch.float64), interval_of(fake.t)
        t = t.expand(len(x_s))
        if interval is not None:
            within(t, *interval)
        log_r = self.ratio(fake.x_t, t, self.condition)
        if log_r.shape != t.shape:
            raise ValueError(
                f"a density ratio must return log r with shape ({len(x_s)},), one per sample, "
                f"got shape {tuple(log_r.shape)} from {self.ratio!r}"
            )
        log_r = log_r.to(torch.promote_types(log_r.dtype, torch.float32))
        _check_finite(log_r, t, "log r", "clamp it, as in Bounded(ratio, limit=10)")
        h = self.divergence.h(log_r)
        remedy = "normalise it, as in BatchNormalised(divergence), or clamp the ratio"
        _check_finite(h, t, "the weight h(r)", remedy)
        return expand(h, x_s) * self.weighting(x_s, s, fake, real)


def _check_finite(value: Tensor, t: Tensor, name: str, remedy: str) -> None:
    bad = ~value.isfinite()
    if bool(bad.any()):
        i = int(bad.nonzero()[0])
        raise ValueError(
            f"{name} is {value[i].item()} at t = {t[i].item():.4g}; {remedy}, or increase the "
            "time margin, as in UniformTimes(margin=0.1)"
        )


@checked
class FDivergence(Objective):
    r"""Moves the generator's output towards the teacher's distribution by an f-divergence.

    With :class:`~pdmd.objectives.divergences.ReverseKL` it equals
    :class:`~pdmd.objectives.distribution_matching.DistributionMatching` to the bit. With
    :class:`~pdmd.objectives.distribution_matching.ExactKL` as the weighting and a divergence that
    is not normalised, the expected step is the gradient of the divergence. The score of a guided
    teacher is that of no density, so that :math:`h` is only a heuristic weight there.

    Args:
        ratio: The density ratio at :math:`x_t`.
        divergence: The divergence; by default Jensen-Shannon, normalised over the batch as in the
            paper.
        weighting: Weights the score difference into the step that :math:`h` scales;
            :class:`~pdmd.objectives.distribution_matching.Normalised` by default.
        times: Samples :math:`t`; uniform over the score range by default.
        name: The loss's name.

    References:
        Xu et al., One-step Diffusion Models with f-Divergence Distribution Matching,
        arXiv:2502.15681.
    """

    def __init__(
        self,
        ratio: DensityRatio,
        divergence: Divergence | None = None,
        weighting: ScoreDifferenceWeighting | None = None,
        times: TimeSampler | None = None,
        name: str = "f_divergence",
    ) -> None:
        self.ratio = ratio
        self.divergence = divergence or BatchNormalised(JensenShannon())
        self.weighting = weighting or Normalised()
        self.times = times or UniformTimes()
        self.name = name

    def losses(
        self, models: Models, rollout: Rollout, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Computes the loss of :class:`DistributionMatching` with the weighted step.

        Raises:
            ValueError: If a ratio or a weight is not finite; the message gives the time.
        """
        weighting = RatioWeighted(self.weighting, self.divergence, self.ratio, rollout.condition)
        return DistributionMatching(weighting, self.times, self.name).losses(
            models, rollout, generator
        )

    def time_bounds(self, phase: Phase) -> tuple[float, float]:
        """Returns the lowest and highest sampled time."""
        return self.times.bounds(phase)

    def shared(self, phase: Phase) -> tuple[object, ...]:
        """Returns the critics of the density ratio."""
        return self.ratio.shared()


density_ratios: Registry[type[DensityRatio]] = Registry(
    "density ratio",
    {
        "critic": "pdmd.objectives.f_divergence:CriticRatio",
        "exact": "pdmd.objectives.f_divergence:ExactRatio",
        "bounded": "pdmd.objectives.f_divergence:Bounded",
    },
)
