r"""f-divergences between teacher and student, as functions of their density ratio.

With :math:`r = p^{real} / p^{fake}` and a convex :math:`f`, :math:`f(1) = 0`, the divergence is
:math:`D_f = \mathbb E_{fake}[f(r)]`, and its gradient weights each sample's score difference
by :math:`h(r) = r^2 f''(r)`:

===================  ===================================  ===================
divergence           :math:`f(r)`                         :math:`h(r)`
===================  ===================================  ===================
Neyman               :math:`1/r - 1`                      :math:`2/r`
softened reverse KL  :math:`(r+1) \log(1/2+1/(2r))`       :math:`1/(r+1)`
reverse KL           :math:`-\log r`                      1
Jensen-Shannon       :math:`r \log r-(r+1)\log((r+1)/2)`  :math:`r/(r+1)`
squared Hellinger    :math:`1 - \sqrt r`                  :math:`\sqrt r / 4`
forward KL           :math:`r \log r`                     :math:`r`
Jeffreys             :math:`(r - 1) \log r`               :math:`r + 1`
===================  ===================================  ===================

All are computed from :math:`\log r`. A decreasing :math:`h` is mode-seeking, an increasing one
mode-covering, an unbounded one has a larger variance. Where the distributions are close, all are
equal to second order up to the factor :math:`h(1) = f''(1)`.

References:
    Xu et al., One-step Diffusion Models with f-Divergence Distribution Matching,
    arXiv:2502.15681, Table 1.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from pdmd.arguments import checked
from pdmd.registry import Registry

__all__ = [
    "BatchNormalised",
    "Divergence",
    "ForwardKL",
    "JensenShannon",
    "Jeffreys",
    "Neyman",
    "ReverseKL",
    "SoftenedReverseKL",
    "SquaredHellinger",
    "divergences",
]

divergences: Registry[type[Divergence]] = Registry("divergence")
register, get, names = divergences.register, divergences.get, divergences.names


class Divergence(ABC):
    """A convex function of the density ratio, with the weight of its gradient."""

    @abstractmethod
    def f(self, log_r: Tensor) -> Tensor:
        r"""Returns :math:`f(r)`, whose mean over student samples is the divergence.

        Args:
            log_r: :math:`\log r`, with shape :math:`(B)`.
        """

    @abstractmethod
    def log_h(self, log_r: Tensor) -> Tensor:
        r"""Returns :math:`\log h(r) = \log(r^2 f''(r))`, with the shape of ``log_r``."""

    def h(self, log_r: Tensor) -> Tensor:
        r"""Returns the weights :math:`h(r)`, with the shape of ``log_r``."""
        return self.log_h(log_r).exp()

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in vars(self).items())
        return f"{type(self).__name__}({arguments})"


@divergences.register("neyman")
class Neyman(Divergence):
    r"""Neyman's :math:`\chi^2`: more mode-seeking than reverse KL, unbounded at r = 0."""

    def f(self, log_r: Tensor) -> Tensor:
        return torch.expm1(-log_r)

    def log_h(self, log_r: Tensor) -> Tensor:
        return math.log(2) - log_r


@divergences.register("softened_reverse_kl")
class SoftenedReverseKL(Divergence):
    r""":math:`2\, \mathrm{KL}(\tfrac12 p^{real} + \tfrac12 p^{fake} \| p^{real})`."""

    def f(self, log_r: Tensor) -> Tensor:
        return (1 + log_r.exp()) * (softplus(-log_r) - math.log(2))

    def log_h(self, log_r: Tensor) -> Tensor:
        return logsigmoid(-log_r)


@divergences.register("reverse_kl")
class ReverseKL(Divergence):
    r""":math:`\mathrm{KL}(p^{fake} \| p^{real})`, the divergence of distribution matching."""

    def f(self, log_r: Tensor) -> Tensor:
        return -log_r

    def log_h(self, log_r: Tensor) -> Tensor:
        return torch.zeros_like(log_r)


@divergences.register("jensen_shannon")
class JensenShannon(Divergence):
    r"""Jensen-Shannon in the paper's scale: the sum, not half, of both KLs to the mixture.

    The best in the paper; its weight increases with :math:`r` but is bounded.
    """

    def f(self, log_r: Tensor) -> Tensor:
        r = log_r.exp()
        return r * log_r - (1 + r) * (softplus(log_r) - math.log(2))

    def log_h(self, log_r: Tensor) -> Tensor:
        return logsigmoid(log_r)


@divergences.register("squared_hellinger")
class SquaredHellinger(Divergence):
    r""":math:`1 - \int \sqrt{p^{real} p^{fake}}`."""

    def f(self, log_r: Tensor) -> Tensor:
        return -torch.expm1(log_r / 2)

    def log_h(self, log_r: Tensor) -> Tensor:
        return log_r / 2 - math.log(4)


@divergences.register("forward_kl")
class ForwardKL(Divergence):
    r""":math:`\mathrm{KL}(p^{real} \| p^{fake})`: mode-covering, with unbounded weights."""

    def f(self, log_r: Tensor) -> Tensor:
        return log_r.exp() * log_r

    def log_h(self, log_r: Tensor) -> Tensor:
        return log_r


@divergences.register("jeffreys")
class Jeffreys(Divergence):
    """The sum of forward and reverse KL."""

    def f(self, log_r: Tensor) -> Tensor:
        return torch.expm1(log_r) * log_r

    def log_h(self, log_r: Tensor) -> Tensor:
        return softplus(log_r)


@divergences.register("batch_normalised")
@checked
class BatchNormalised(Divergence):
    r"""A divergence whose weights are divided by their mean over the batch.

    The step then has the size of distribution matching's for every divergence. This is the second
    stage of the paper's normalisation. The first, which divides a critic's ratio by its running
    mean at similar times, is left out: an exact ratio has mean 1 over student samples at any time.

    Args:
        divergence: The divergence.

    References:
        Xu et al., arXiv:2502.15681 (two-stage normalisation).
    """

    def __init__(self, divergence: Divergence) -> None:
        self.divergence = divergence

    def f(self, log_r: Tensor) -> Tensor:
        return self.divergence.f(log_r)

    def log_h(self, log_r: Tensor) -> Tensor:
        return self.h(log_r).log()

    def h(self, log_r: Tensor) -> Tensor:
        log_h = self.divergence.log_h(log_r)
        h = (log_h - log_h.max()).exp()  # neither overflows nor vanishes for all samples
        return h / h.mean()
