r"""Weightings of the subinterval score-matching loss.

A weighting multiplies the squared residual of the network's own prediction. The target's
variance diverges as :math:`1 / b^2`, :math:`b = \sigma_{t|s}`, when :math:`t \to s`; every
weighting but :class:`Unweighted` falls as :math:`b^2` there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

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
            kind: What the network predicts.
        """

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in vars(self).items())
        return f"{type(self).__name__}({arguments})"


@weightings.register("none")
class Unweighted(Weighting):
    """Weight 1 everywhere: the target's variance then rules near the phase's end."""

    def __call__(self, s: Times, t: Times, schedule: Schedule, kind: Kind) -> Tensor:
        return torch.ones_like(schedule(t)[0])


@weightings.register("clamped")
class ClampedWeighting(Weighting):
    r"""The paper's clamp, which holds the weight at 1 away from the phase's end.

    .. math:: b^2 \operatorname{clamp}(1 / b^2, 0, c) = \min(1, c b^2)

    The effective weight is :math:`\min(1, c\, b^2)`.

    Args:
        limit: :math:`c`, 10 in the paper.

    Raises:
        ValueError: If the limit is not positive.

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
    r"""The transition's share of the noise: 1 at s = 0, falling to 0 at the phase's end.

    .. math:: b^2 / \sigma_t^2 = 1 - e^{\lambda_t - \lambda_s}
    """

    def __call__(self, s: Times, t: Times, schedule: Schedule, kind: Kind) -> Tensor:
        _, b = schedule.transition(s, t)
        return (b / schedule(t)[1]).square()


@weightings.register("epsilon")
class EpsilonWeighting(Weighting):
    r"""The loss of predicting the transition's own noise.

    .. math:: \|\hat\varepsilon_{t|s} - \varepsilon\|^2

    On a network of another kind the weight is :math:`(D_\varepsilon b / (D_{kind} \sigma_t))^2`,
    for rectified-flow velocity :math:`(\alpha_t b / (\sigma_t (\alpha_t + \sigma_t)))^2`.
    """

    def __call__(self, s: Times, t: Times, schedule: Schedule, kind: Kind) -> Tensor:
        alpha_t, sigma_t = schedule(t)
        _, b = schedule.transition(s, t)
        return (alpha_t / determinant(kind, t, schedule) * b / sigma_t).square()


@weightings.register("inverse_variance")
class InverseVarianceWeighting(Weighting):
    r"""The inverse of the target's variance, for data that were Gaussian.

    With :math:`x_0` of standard deviation :math:`\tau`, :math:`v_s = \alpha_s^2 \tau^2 +
    \sigma_s^2` and :math:`a = \alpha_{t|s}`, the score target has conditional variance
    :math:`a^2 v_s / (b^2 (a^2 v_s + b^2))` per dimension.

    Args:
        std: :math:`\tau`, the data's standard deviation.
        limit: Upper bound of the weight; where :math:`a \to 0` the target carries no noise at all.

    Raises:
        ValueError: If either is not positive.
    """

    def __init__(self, std: float = 1.0, limit: float = 100.0) -> None:
        if not (std > 0 and limit > 0):
            raise ValueError(f"std and limit must be positive, got {std} and {limit}")
        self.std, self.limit = float(std), float(limit)

    def __call__(self, s: Times, t: Times, schedule: Schedule, kind: Kind) -> Tensor:
        alpha_s, sigma_s = schedule(s)
        alpha_t, sigma_t = schedule(t)
        a, b = schedule.transition(s, t)
        spread = a.square() * (alpha_s.square() * self.std**2 + sigma_s.square())
        variance = spread / (b.square() * (spread + b.square()))
        to_kind = determinant(kind, t, schedule) * sigma_t / alpha_t
        return (1 / (variance * to_kind.square())).clamp(max=self.limit)
