r"""Distribution matching within a subinterval.

The generator's output :math:`x_s` is diffused to :math:`x_t = a x_s + b \varepsilon` and moved
along

.. math:: \nabla_{x_s} \mathrm{KL}(p^{fake}_t \| p^{real}_t)
    = a \, (S^{fake}_t(x_t) - S^{real}_t(x_t)).

At :math:`s = 0` this is DMD. A :class:`ScoreDifferenceWeighting` weights the score difference into
a step :math:`g`. The loss is :math:`\tfrac12 \|x_s - \mathrm{sg}(x_s - g)\|^2`, with gradient
:math:`g`.

References:
    Yin et al., DMD, arXiv:2311.18828, Eqs. 7-8; Fan et al., Phased DMD, arXiv:2510.27684,
    Section 3.1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pdmd.arguments import checked
from pdmd.diffusion.predictions import Prediction, determinant
from pdmd.diffusion.solvers import diffuse, posterior_mean
from pdmd.distillation.phases import Phase
from pdmd.objectives.base import Models, Objective, Rollout
from pdmd.objectives.time_samplers import TimeSampler, UniformTimes
from pdmd.randomness import randn_like
from pdmd.registry import Registry
from pdmd.typing import Latents, expand

__all__ = [
    "DistributionMatching",
    "ExactKL",
    "Normalised",
    "PosteriorDifference",
    "ScoreDifferenceWeighting",
    "distribution_matching_gradient",
    "score_difference",
    "score_difference_weightings",
]

score_difference_weightings: Registry[type[ScoreDifferenceWeighting]] = Registry(
    "score-difference weighting"
)


def score_difference(fake: Prediction, real: Prediction) -> Latents:
    r"""Returns :math:`S^{fake} - S^{real}` from two predictions at the same :math:`x_t`.

    The terms in :math:`x_t` cancel analytically: no digits are lost where scores are large.

    Args:
        fake: The fake score's prediction, with a value of shape :math:`(B, *)`.
        real: The teacher's prediction, of any kind, on the same schedule.

    Returns:
        The score difference, with shape :math:`(B, *)`.
    """
    alpha_t, sigma_t = fake.schedule(fake.t)
    scale = -alpha_t / (sigma_t * determinant(fake.kind, fake.t, fake.schedule))
    difference = fake.to(fake.kind) - real.to(fake.kind)
    return expand(scale, difference) * difference


class ScoreDifferenceWeighting(ABC):
    """Weights the difference of fake and real score into a step on :math:`x_s`."""

    @abstractmethod
    def __call__(self, x_s: Latents, s: float, fake: Prediction, real: Prediction) -> Latents:
        r"""Returns the step :math:`g`, with shape :math:`(B, *)`, subtracted from :math:`x_s`.

        Args:
            x_s: The generator's output, with shape :math:`(B, *)`.
            s: The time of ``x_s``.
            fake: The fake score's prediction at :math:`x_t`.
            real: The teacher's prediction at :math:`x_t`.
        """

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in vars(self).items())
        return f"{type(self).__name__}({arguments})"


@score_difference_weightings.register("exact_kl")
class ExactKL(ScoreDifferenceWeighting):
    r"""The exact gradient of the KL divergence, as in the paper.

    .. math:: g = a \, (S^{fake} - S^{real})

    On rectified flow this is the paper's
    :math:`w_{t|s} = \alpha_t a / (\alpha_t \sigma_t + \sigma_t^2)` times
    :math:`v^{real} - v^{fake}`.

    References:
        Fan et al., Phased DMD, arXiv:2510.27684, Section 3.1.
    """

    def __call__(self, x_s: Latents, s: float, fake: Prediction, real: Prediction) -> Latents:
        a, _ = fake.schedule.transition(s, fake.t)
        return expand(a, x_s) * score_difference(fake, real)


@score_difference_weightings.register("posterior")
class PosteriorDifference(ScoreDifferenceWeighting):
    r"""The difference of the posterior means of the phase's output.

    .. math:: g = m^{fake} - m^{real} = (b^2 / a) (S^{fake} - S^{real})

    At :math:`s = 0` it is the difference of clean predictions, without DMD's normaliser.
    """

    def __call__(self, x_s: Latents, s: float, fake: Prediction, real: Prediction) -> Latents:
        return posterior_mean(fake, s) - posterior_mean(real, s)


@score_difference_weightings.register("normalised")
@checked
class Normalised(ScoreDifferenceWeighting):
    r"""DMD's normalisation, with the phase's output as the clean variable.

    .. math:: g = \frac{m^{fake} - m^{real}}{\mathrm{mean} |x_s - m^{real}| + \epsilon}

    with the mean over the dimensions of each sample. At :math:`s = 0` it is DMD's.

    Args:
        epsilon: Added to the normaliser.

    Raises:
        ValueError: If ``epsilon`` is negative.

    References:
        Yin et al., DMD, arXiv:2311.18828, Eq. 8.
    """

    def __init__(self, epsilon: float = 1e-3) -> None:
        if not epsilon >= 0:
            raise ValueError(f"epsilon must be at least 0, got {epsilon}")
        self.epsilon = float(epsilon)

    def __call__(self, x_s: Latents, s: float, fake: Prediction, real: Prediction) -> Latents:
        m_fake, m_real = posterior_mean(fake, s), posterior_mean(real, s)
        dims = tuple(range(1, x_s.ndim))
        scale = (x_s - m_real).abs().mean(dims, keepdim=True) + self.epsilon
        return (m_fake - m_real) / scale


@torch.no_grad()
def distribution_matching_gradient(
    models: Models,
    rollout: Rollout,
    t: Tensor,
    epsilon: Latents,
    weighting: ScoreDifferenceWeighting,
) -> Latents:
    r"""Returns the step :math:`g` on :math:`x_s` at given times and noise.

    Args:
        models: The denoisers of the phase.
        rollout: The generator's output, with ``x_s`` of shape :math:`(B, *)`.
        t: Times above the phase's end, float64, with shape :math:`(B)`.
        epsilon: Noise, with shape :math:`(B, *)`.
        weighting: Weights the score difference into the step.

    Returns:
        :math:`g` in float32 or wider, with shape :math:`(B, *)`.
    """
    x_s, s = rollout.x_s.detach(), rollout.phase.t_end
    x_t = diffuse(x_s, epsilon, s, t, models.fake.schedule)
    fake = models.fake(x_t, t, rollout.condition)
    real = models.real(x_t, t, rollout.condition)
    return weighting(x_s.to(torch.promote_types(x_s.dtype, torch.float32)), s, fake, real)


@checked
class DistributionMatching(Objective):
    r"""Moves the generator's output towards the teacher's distribution (reverse KL).

    Args:
        weighting: Weights the score difference into a step; :class:`Normalised` by default.
        times: Samples :math:`t`; uniform over the score range by default.
        name: The loss's name.
        timestep_samples: Samples of :math:`(t, \varepsilon)` per :math:`x_s`, over which the step
            is averaged. More lower its variance at the cost of evaluations of the two scores,
            without storing activations.

    Raises:
        ValueError: If ``timestep_samples`` is below 1.
    """

    def __init__(
        self,
        weighting: ScoreDifferenceWeighting | None = None,
        times: TimeSampler | None = None,
        name: str = "distribution_matching",
        *,
        timestep_samples: int = 1,
    ) -> None:
        if timestep_samples < 1:
            raise ValueError(f"timestep_samples must be at least 1, got {timestep_samples}")
        self.timestep_samples = int(timestep_samples)
        self.weighting = weighting or Normalised()
        self.times = times or UniformTimes()
        self.name = name

    def losses(
        self, models: Models, rollout: Rollout, generator: torch.Generator
    ) -> dict[str, Tensor]:
        r"""Computes the mean over elements of :math:`\tfrac12 (x_s - \mathrm{sg}(x_s - g))^2`."""
        x_s = rollout.x_s
        steps = []
        for _ in range(self.timestep_samples):
            scores = (models.fake, models.real)
            drawn = self.times.sample(len(x_s), rollout.phase, scores, generator)
            epsilon = randn_like(x_s, generator)
            step = distribution_matching_gradient(
                models, rollout, drawn.t, epsilon, self.weighting
            )
            steps.append(drawn.weighted(step))
        g = steps[0] if self.timestep_samples == 1 else torch.stack(steps).mean(0)
        x_s = x_s.float()
        target = (x_s - g).detach()
        return {self.name: 0.5 * (x_s - target).square().mean()}

    def time_bounds(self, phase: Phase) -> tuple[float, float]:
        """Returns the lowest and highest sampled time."""
        return self.times.bounds(phase)
