r"""Fisher divergence within a subinterval: score identity distillation (SiD) of :math:`x_s`.

The generator's output is diffused, :math:`x_t = a x_s + b \varepsilon`, and the loss is the
Fisher divergence, :math:`F = \mathbb E \|S^{real}(x_t) - S^{fake}(x_t)\|^2`. In posterior
means of :math:`x_s`, :math:`m = (x_t + b^2 S) / a`, and with :math:`d = m^{real} - m^{fake}`,

.. math:: \|d\|^2 = (b^4 / a^2) \|S^{real} - S^{fake}\|^2.

For any distribution of :math:`x_s`, the residual :math:`m^{fake} - x_s = (b^2 / a)(S^{fake} +
\varepsilon / b)` of an exact fake score is orthogonal to every function of :math:`x_t` (the score
projection identity), which gives a second estimate of the same quantity, :math:`\mathbb E[d \cdot
(m^{real} - x_s)]`. SiD subtracts :math:`\alpha` times the first from it:

.. math:: L_\alpha = w \, d \cdot [(m^{real} - x_s) - \alpha d]
    = w \, [(1 - \alpha) \|d\|^2 + d \cdot (m^{fake} - x_s)].

Both networks are frozen, and the gradient flows through their inputs. Differentiating the
identity relates this gradient to the true one, whose fake score depends on the generator:

.. math:: \nabla \mathbb E \|d\|^2
    = \nabla \mathbb E[\|d\|^2 + 2 d \cdot (m^{fake} - x_s)]_{networks\ frozen}
    = 2 \nabla \mathbb E[L_{1/2}]_{networks\ frozen}.

So :math:`\alpha = 1/2` is exact where :math:`w` depends on time alone. At :math:`s = 0`,
:math:`m = \hat x_0` and :math:`L_\alpha` is SiD's loss. ``docs/derivations/divergences.md``
derives the formulas.

References:
    Zhou et al., Score identity Distillation, arXiv:2404.04057, Sections 3 and 4; Luo et al.,
    Score Implicit Matching, arXiv:2410.16794, Section 3.2 (the exact gradient).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pdmd.arguments import checked
from pdmd.diffusion.predictions import Prediction
from pdmd.diffusion.solvers import diffuse, posterior_mean
from pdmd.distillation.phases import Phase
from pdmd.objectives.base import Models, Objective, Rollout
from pdmd.objectives.time_samplers import TimeSampler, UniformTimes
from pdmd.randomness import randn_like
from pdmd.registry import Registry
from pdmd.typing import Latents, expand

__all__ = [
    "ErrorNormalised",
    "FisherDivergence",
    "FisherWeighting",
    "PosteriorUnits",
    "ScoreUnits",
    "fisher_losses",
    "fisher_weightings",
]

fisher_weightings: Registry[type[FisherWeighting]] = Registry("Fisher weighting")


class FisherWeighting(ABC):
    r"""The factor :math:`w` of each sample's loss, without gradient."""

    @abstractmethod
    def __call__(self, x_s: Latents, s: float, real: Prediction) -> Tensor:
        """Returns the weight, broadcastable to ``x_s``.

        Args:
            x_s: The generator's output, with shape :math:`(B, *)`.
            s: The time of ``x_s``.
            real: The teacher's prediction at :math:`x_t`.
        """

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in vars(self).items())
        return f"{type(self).__name__}({arguments})"


@fisher_weightings.register("error_normalised")
class ErrorNormalised(FisherWeighting):
    r"""SiD's: :math:`w = 1 / \mathrm{mean} |x_s - m^{real}|` over each sample's dimensions.

    It keeps the loss at a similar scale across times, but depends on the sample, so that no
    :math:`\alpha` is exact.

    Args:
        floor: Lower bound of the denominator.

    Raises:
        ValueError: If ``floor`` is not positive.

    References:
        Zhou et al., Score identity Distillation, arXiv:2404.04057, Section 4
        (:math:`\omega(t)`, there with a sum over dimensions and a constant numerator).
    """

    def __init__(self, floor: float = 1e-5) -> None:
        if not floor > 0:
            raise ValueError(f"floor must be positive, got {floor}; 1e-5 is the default")
        self.floor = float(floor)

    def __call__(self, x_s: Latents, s: float, real: Prediction) -> Tensor:
        dims = tuple(range(1, x_s.ndim))
        error = (x_s - posterior_mean(real, s)).abs().mean(dims, keepdim=True)
        return 1 / error.clamp(min=self.floor)


@fisher_weightings.register("posterior")
class PosteriorUnits(FisherWeighting):
    r""":math:`w = 1`: squared distances of posterior means of :math:`x_s`."""

    def __call__(self, x_s: Latents, s: float, real: Prediction) -> Tensor:
        return torch.ones((), dtype=x_s.dtype, device=x_s.device)


@fisher_weightings.register("score")
class ScoreUnits(FisherWeighting):
    r""":math:`w = a^2 / b^4`: squared distances of scores, the Fisher divergence itself.

    Unbounded as :math:`t \to s`: use a time margin.
    """

    def __call__(self, x_s: Latents, s: float, real: Prediction) -> Tensor:
        a, b = real.schedule.transition(s, real.t)
        return expand((a / b.square()).square(), x_s)


def fisher_losses(
    models: Models,
    rollout: Rollout,
    t: Tensor,
    epsilon: Latents,
    alpha: float,
    weighting: FisherWeighting,
) -> Tensor:
    r"""Returns :math:`L_\alpha` of each sample at given times and noise.

    Args:
        models: The denoisers of the phase, whose parameters need no gradient.
        rollout: The generator's output, with ``x_s`` of shape :math:`(B, *)`; its gradient flows
            directly and through the inputs of both networks.
        t: Times above the phase's end, float64, with shape :math:`(B)`.
        epsilon: Noise, with shape :math:`(B, *)`.
        alpha: :math:`\alpha`.
        weighting: Returns the factor :math:`w`.

    Returns:
        Losses averaged over each sample's dimensions, in float32 or wider, with shape
        :math:`(B)`.
    """
    x_s, s = rollout.x_s, rollout.phase.t_end
    x_t = diffuse(x_s, epsilon, s, t, models.fake.schedule)
    fake = models.fake(x_t, t, rollout.condition)
    real = models.real(x_t, t, rollout.condition)
    x_s = x_s.to(torch.promote_types(x_s.dtype, torch.float32))
    m_fake, m_real = posterior_mean(fake, s), posterior_mean(real, s)
    with torch.no_grad():
        w = weighting(x_s, s, real)
    d = m_real - m_fake
    return (w * d * ((m_real - x_s) - alpha * d)).flatten(1).mean(1)


@checked
class FisherDivergence(Objective):
    r"""Matches the scores of the student's samples to the teacher's (score identity distillation).

    The choice of :math:`\alpha`: at 1/2, with :class:`PosteriorUnits` or :class:`ScoreUnits` and
    an exact fake score, the expected gradient is half that of the divergence. Other values add
    :math:`(1/2 - \alpha) \nabla \mathbb E \|d\|^2` with frozen networks, which moves samples to
    where the scores are equal for :math:`\alpha < 1/2`, and to where they differ for
    :math:`\alpha > 1/2`. At 1, only the term of the fake score's dependence on the generator is
    left, and the loss has mean 0. Between zero-mean Gaussians of variance :math:`v` (fake) and
    :math:`w` (real) the gradient in :math:`v` is proportional to
    :math:`(1/w - 1/v)[\alpha / v + (1 - \alpha) / w]`: of the right sign everywhere for
    :math:`0 \le \alpha \le 1`, but of the wrong sign for :math:`\alpha > 1` where
    :math:`v / w > \alpha / (\alpha - 1)`, which is 6 for SiD's 1.2.

    The backward pass goes through teacher and fake score, at about twice the cost of
    :class:`~pdmd.objectives.distribution_matching.DistributionMatching`.

    Args:
        alpha: :math:`\alpha`; 1.2 by default, as in SiD's best published results.
        weighting: The factor of each sample's loss; :class:`ErrorNormalised`, SiD's, by default.
        times: Samples :math:`t`; uniform over the score range by default.
        name: The loss's name.

    Raises:
        ValueError: If ``alpha`` is not finite.

    References:
        Zhou et al., Score identity Distillation, arXiv:2404.04057, Section 4.
    """

    def __init__(
        self,
        alpha: float = 1.2,
        weighting: FisherWeighting | None = None,
        times: TimeSampler | None = None,
        name: str = "fisher_divergence",
    ) -> None:
        if not math.isfinite(alpha):
            raise ValueError(f"alpha must be finite, got {alpha}; 0.5 is exact, SiD uses 1.2")
        self.alpha = float(alpha)
        self.weighting = weighting or ErrorNormalised()
        self.times = times or UniformTimes()
        self.name = name

    def losses(
        self, models: Models, rollout: Rollout, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Computes the mean of :func:`fisher_losses` at sampled times and noise."""
        x_s = rollout.x_s
        scores = (models.fake, models.real)
        drawn = self.times.sample(len(x_s), rollout.phase, scores, generator)
        epsilon = randn_like(x_s, generator)
        losses = fisher_losses(models, rollout, drawn.t, epsilon, self.alpha, self.weighting)
        return {self.name: drawn.weighted(losses.mean().float())}

    def time_bounds(self, phase: Phase) -> tuple[float, float]:
        """Returns the lowest and highest sampled time."""
        return self.times.bounds(phase)
