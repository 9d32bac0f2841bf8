r"""Weightings of the subinterval score-matching loss.

A weighting :math:`w` multiplies the squared residual of the network's prediction, :math:`L =
\mathbb E\, w(s, t) \|y - y^*\|^2`. The target's variance diverges as :math:`1 / b^2`,
:math:`b = \sigma_{t|s}`, as :math:`t \to s`; all weightings but :class:`Unweighted` decrease as
:math:`b^2` there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pdmd.arguments import checked
from pdmd.diffusion.predictions import Kind, determinant
from pdmd.diffusion.schedules import Schedule
from pdmd.registry import Registry
from pdmd.typing import Times

__all__ = [
    "ClampedWeighting",
    "EpsilonWeighting",
    "InverseVarianceWeighting",
    "RatioWeighting",
    "Unweighted",
    "Weighting",
    "weightings",
]

weightings: Registry[type[Weighting]] = Registry("weighting")
register, get, names = weightings.register, weightings.get, weightings.names


class Weighting(ABC):
    """A weight on the squared residual of a prediction."""

    @abstractmethod
    def __call__(self, s: Times, t: Times, schedule: Schedule, kind: Kind) -> Tensor:
        """Returns the weight, float64, with the shape of ``t``.

        Args:
            s: The phase's end.
            t: Times above ``s``, with shape :math:`(B)`.
            schedule: The forward process.
            kind: The kind of the prediction.
        """

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in vars(self).items())
        return f"{type(self).__name__}({arguments})"


@weightings.register("none")
class Unweighted(Weighting):
    r""":math:`w = 1`: the target's variance dominates near the phase's end."""

    def __call__(self, s: Times, t: Times, schedule: Schedule, kind: Kind) -> Tensor:
        return torch.ones_like(schedule(t)[0])


@weightings.register("clamped")
@checked
class ClampedWeighting(Weighting):
    r"""The paper's clamped weight, 1 away from the phase's end.

    .. math:: w = b^2 \operatorname{clamp}(1 / b^2, 0, c) = \min(1, c\, b^2)

    Args:
        limit: :math:`c`, 10 in the paper.

    Raises:
        ValueError: If ``limit`` is not positive.

    References:
        Fan et al., Phased DMD, arXiv:2510.27684, Section 3.3.
    """

    def __init__(self, limit: float = 10.0) -> None:
        if not limit > 0:
            raise ValueError(f"the clamp's limit must be positive, got {limit}")
        self.limit = float(limit)

    def __call__(self, s: Times, t: Times, schedule: Schedule, kind: Kind) -> Tensor:
        _, b = schedule.transition(s, t)
        return (self.limit * b.square()).clamp(max=1)


@weightings.register("ratio")
class RatioWeighting(Weighting):
    r"""The share of the noise added after :math:`s`: 1 at :math:`s = 0`, 0 as :math:`t \to s`.

    .. math:: w = b^2 / \sigma_t^2 = 1 - e^{\lambda_t - \lambda_s}
    """

    def __call__(self, s: Times, t: Times, schedule: Schedule, kind: Kind) -> Tensor:
        _, b = schedule.transition(s, t)
        return (b / schedule(t)[1]).square()


@weightings.register("epsilon")
class EpsilonWeighting(Weighting):
    r"""The loss of predicting the transition's noise, :math:`\|\hat\varepsilon - \varepsilon\|^2`.

    .. math:: w = \left(\frac{D_\varepsilon\, b}{D_{kind}\, \sigma_t}\right)^2

    with :math:`D` the :func:`~pdmd.diffusion.predictions.determinant` of a kind. For
    rectified-flow velocity, :math:`w = (\alpha_t b / (\sigma_t (\alpha_t + \sigma_t)))^2`.
    """

    def __call__(self, s: Times, t: Times, schedule: Schedule, kind: Kind) -> Tensor:
        alpha_t, sigma_t = schedule(t)
        _, b = schedule.transition(s, t)
        return (alpha_t / determinant(kind, t, schedule) * b / sigma_t).square()


@weightings.register("inverse_variance")
@checked
class InverseVarianceWeighting(Weighting):
    r"""The inverse conditional variance of the target, for Gaussian data.

    With data of standard deviation :math:`\tau`, :math:`v_s = \alpha_s^2 \tau^2 + \sigma_s^2` and
    :math:`a = \alpha_{t|s}`, the score target has variance :math:`a^2 v_s / (b^2 (a^2 v_s + b^2))`
    per dimension, and the target of another kind :math:`(D_{kind}\, \sigma_t / \alpha_t)^2` times
    that.

    Args:
        std: :math:`\tau`, the data's standard deviation.
        limit: Upper bound of the weight, since the variance vanishes as :math:`a \to 0`.

    Raises:
        ValueError: If ``std`` or ``limit`` is not positive.
    """

    def __init__(self, std: float = 1.0, limit: float = 100.0) -> None:
        if not (std > 0 and limit > 0):
            raise ValueError(f"std and limit must be positive, got {std} and {limit}")
        self.std, self.limit = float(std), float(limit)

    def __call__(self, s: Times, t: Times, schedule: Schedule, kind: Kind) -> Tensor:
        alpha_s, sigma_s = schedule(s)
        _, sigma_t = schedule(t)
        a, b = schedule.transition(s, t)
        clean = alpha_s.square() * self.std**2 + sigma_s.square()
        # by alpha_t = a alpha_s, which keeps the weight finite where alpha_t = 0
        share = b.square() * (a.square() * clean + b.square()) / clean
        to_kind = determinant(kind, t, schedule) * sigma_t / alpha_s
        return (share / to_kind.square()).clamp(max=self.limit)
