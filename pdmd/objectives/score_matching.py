r"""Score matching within a subinterval, where no clean sample exists.

Only :math:`x_s`, :math:`s = t_k`, is available. With :math:`x_t = a x_s + b \varepsilon` the
conditional score :math:`S^* = -\varepsilon / b` has :math:`\mathbb E[S^* | x_t] = \nabla \log
p_t(x_t)`, and since every prediction is affine in :math:`(x_t, \nabla \log p_t)`, its unbiased
target follows from

.. math::
    x_0^* = \frac{x_s}{\alpha_s} - \frac{\alpha_t \sigma_s^2}{\alpha_s^2 b} \varepsilon, \qquad
    \varepsilon^* = \frac{\sigma_t}{b} \varepsilon, \qquad
    y^* = c_x x_0^* + c_\varepsilon \varepsilon^*.

At :math:`s = 0` these are :math:`x_0` and :math:`\varepsilon`: ordinary denoising score matching.

The error of the fake score :math:`\hat S` is measured from the same evaluations. The target's
conditional variance is :math:`\operatorname{tr} \mathrm{Cov}(S^* | x_t) = d / b^2 + \nabla \cdot
S`, whose mean is :math:`d / b^2 + \mathbb E \langle \hat S, \varepsilon \rangle / b` for an exact
score, by integration by parts. The loss in excess of it is

.. math:: \mathbb E \|\hat S\|^2 + \mathbb E \langle \hat S, \varepsilon \rangle / b
    = \mathbb E \langle \hat S, \hat S - S \rangle ,

and the *relative error* is its negative over :math:`\mathbb E \|\hat S\|^2`: 0 for an exact score,
positive for one that is too small.

References:
    Fan et al., Phased DMD, arXiv:2510.27684, Section 3.2 (rectified-flow velocity).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from pdmd.arguments import check_instance, checked
from pdmd.diffusion.checks import check_transition
from pdmd.diffusion.predictions import Kind, Prediction, combination
from pdmd.diffusion.schedules import Schedule
from pdmd.diffusion.solvers import diffuse, transition_noise
from pdmd.distillation.phases import Phase
from pdmd.objectives.base import Models, Objective, Rollout
from pdmd.objectives.time_samplers import TimeSampler, UniformTimes
from pdmd.objectives.weightings import ClampedWeighting, Weighting
from pdmd.randomness import randn_like
from pdmd.typing import Latents, Times, expand

__all__ = ["SubintervalScoreMatching", "relative_score_error", "subinterval_target"]


def subinterval_target(
    x_s: Latents, epsilon: Latents, s: Times, t: Times, schedule: Schedule, kind: Kind
) -> Latents:
    r"""Returns the unbiased target of a prediction at time :math:`t`, given :math:`x_s`.

    Args:
        x_s: Samples at time :math:`s`, with shape :math:`(B, *)`.
        epsilon: The noise of :math:`x_t = a x_s + b \varepsilon`, with shape :math:`(B, *)`.
        s: The clean end of the subinterval, in :math:`[0, 1)`.
        t: Times in :math:`(s, 1]`, with shape :math:`()` or :math:`(B)`.
        schedule: The forward process.
        kind: The kind of the prediction.

    Returns:
        The target, with shape :math:`(B, *)`, in float32 or wider.

    Raises:
        TypeError: If a tensor or a time is something else.
        ValueError: If :math:`s \geq t` anywhere, or shapes do not belong together.

    References:
        Fan et al., Phased DMD, arXiv:2510.27684, Section 3.2.
    """
    check_transition(x_s, epsilon, s, t)
    check_instance("schedule", schedule, Schedule)
    _, b = schedule.transition(s, t)
    (alpha_s, sigma_s), (alpha_t, sigma_t) = schedule(s), schedule(t)
    c_x, c_eps = combination(kind, t, schedule)
    of_x_s = c_x / alpha_s
    of_epsilon = (c_eps * sigma_t - of_x_s * alpha_t * (sigma_s.square() / alpha_s)) / b
    return expand(of_x_s, x_s) * x_s + expand(of_epsilon, epsilon) * epsilon


@checked
@torch.no_grad()
def relative_score_error(
    prediction: Prediction, epsilon: Latents, s: Times, bins: int = 4
) -> Tensor:
    r"""Returns the relative error of a score, in bins of time with equally many samples.

    .. math:: \frac{\mathbb E \langle \hat\varepsilon, \varepsilon - \hat\varepsilon \rangle}
        {\mathbb E \|\hat\varepsilon\|^2}, \qquad \hat\varepsilon = -b \hat S

    Args:
        prediction: A prediction at :math:`x_t = a x_s + b \varepsilon`, with a value of shape
            :math:`(B, *)`.
        epsilon: The noise, with shape :math:`(B, *)`.
        s: The time of :math:`x_s`.
        bins: The number of bins, at most one per sample.

    Returns:
        The relative error per bin, from the lowest times to the highest, with shape ``(bins,)``.
    """
    t = torch.as_tensor(prediction.t).expand(len(epsilon))
    predicted = transition_noise(prediction, s)
    error = (predicted * (epsilon - predicted)).flatten(1).sum(1)
    size = predicted.square().flatten(1).sum(1)
    by_time = t.argsort()
    parts = zip(error[by_time].chunk(bins), size[by_time].chunk(bins), strict=True)
    return torch.stack([e.sum() / d.sum() for e, d in parts])


Target: TypeAlias = Callable[[Latents, Latents, Times, Times, Schedule, Kind], Latents]
"""A regression target with the signature of :func:`subinterval_target`."""


@checked
class SubintervalScoreMatching(Objective):
    r"""Trains the fake score on student samples at the end of a phase.

    Args:
        weighting: Weight of the squared residual; the paper's by default.
        times: Samples :math:`t`; uniform over the score range by default.
        name: The loss's name.
        target: The regression target; :func:`subinterval_target`, which is unbiased, by default.
            Others serve as controls.
    """

    def __init__(
        self,
        weighting: Weighting | None = None,
        times: TimeSampler | None = None,
        name: str = "score_matching",
        *,
        target: Target = subinterval_target,
    ) -> None:
        self.target = target
        self.weighting = weighting or ClampedWeighting()
        self.times = times or UniformTimes()
        self.name = name
        self._last: tuple[Prediction, Latents, float] | None = None

    def losses(
        self, models: Models, rollout: Rollout, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Computes the mean weighted squared residual of the fake score."""
        x_s, s, fake = rollout.x_s.detach(), rollout.phase.t_end, models.fake
        schedule = fake.schedule
        drawn = self.times.sample(len(x_s), rollout.phase, (fake,), generator)
        t = drawn.t
        epsilon = randn_like(x_s, generator)
        prediction = fake(diffuse(x_s, epsilon, s, t, schedule), t, rollout.condition)
        target = self.target(x_s, epsilon, s, t, schedule, fake.kind)
        weight = expand(self.weighting(s, t, schedule, fake.kind), x_s)
        self._last = (prediction.detached(), epsilon, s)
        loss = (weight * (prediction.value.float() - target.float()).square()).mean()
        return {self.name: drawn.weighted(loss)}

    def time_bounds(self, phase: Phase) -> None:
        """Returns ``None``, as the teacher is not evaluated.

        Raises:
            ValueError: If the sampler has no times in the phase.
        """
        self.times.bounds(phase)

    def diagnostics(self) -> dict[str, Tensor]:
        """Returns the ``relative_error`` of the fake score at the last :meth:`losses`.

        See :func:`relative_score_error`.
        """
        return {} if self._last is None else {"relative_error": relative_score_error(*self._last)}
