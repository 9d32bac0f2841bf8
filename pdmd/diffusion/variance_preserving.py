r"""Variance-preserving schedules, :math:`\alpha_t^2 + \sigma_t^2 = 1`: continuous and discrete.

With the log signal-to-noise ratio :math:`\lambda_t`, :math:`\alpha_t^2 = \operatorname{sigmoid}
(\lambda_t)` and :math:`\sigma_t^2 = \operatorname{sigmoid}(-\lambda_t)`: :math:`\lambda_t`
determines a schedule of this family.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from pdmd.arguments import checked
from pdmd.diffusion.schedules import Schedule
from pdmd.diffusion.timesteps import as_times
from pdmd.typing import Times

__all__ = ["CosineVP", "DiscreteVP", "LinearVP", "VariancePreserving"]


class VariancePreserving(Schedule):
    r"""Base class of schedules with :math:`\alpha_t^2 + \sigma_t^2 = 1`.

    A subclass implements :meth:`log_snr`; then :math:`\alpha_t^2 = \operatorname{sigmoid}
    (\lambda_t)` and :math:`\sigma_t^2 = \operatorname{sigmoid}(-\lambda_t)`.
    """

    @abstractmethod
    def log_snr(self, t: Times) -> Tensor:
        r"""Returns :math:`\lambda_t` in float64."""

    def __call__(self, t: Times) -> tuple[Tensor, Tensor]:
        log_snr = self.log_snr(t)
        return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()


@checked
class LinearVP(VariancePreserving):
    r"""The variance-preserving schedule whose noise rate :math:`\beta` is linear in time.

    .. math:: \alpha_t^2 = e^{-B_t}, \quad
        B_t = \beta_{\min} t + \tfrac12 (\beta_{\max} - \beta_{\min}) t^2

    Args:
        beta_min: The noise rate at :math:`t = 0`, positive.
        beta_max: The noise rate at :math:`t = 1`, at least ``beta_min``.

    Raises:
        ValueError: If not :math:`0 < \beta_{\min} \leq \beta_{\max} < \infty`.

    References:
        Song et al., Score-Based Generative Modeling through SDEs, arXiv:2011.13456, Eq. 32.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        if not (0 < beta_min <= beta_max < math.inf):
            raise ValueError(
                f"expected 0 < beta_min <= beta_max, got beta_min = {beta_min}, "
                f"beta_max = {beta_max}"
            )
        self.beta_min, self.beta_max = float(beta_min), float(beta_max)

    def _integral(self, t: Tensor) -> Tensor:
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2

    def __call__(self, t: Times) -> tuple[Tensor, Tensor]:
        integral = self._integral(as_times(t))
        return torch.exp(-integral / 2), torch.sqrt(-torch.expm1(-integral))

    def derivatives(self, t: Times) -> tuple[Tensor, Tensor]:
        t = as_times(t)
        beta = self.beta_min + (self.beta_max - self.beta_min) * t
        alpha_t, sigma_t = self(t)
        return -beta * alpha_t / 2, beta * alpha_t**2 / (2 * sigma_t)

    def log_snr(self, t: Times) -> Tensor:
        integral = self._integral(as_times(t))
        return -integral - torch.log(-torch.expm1(-integral))

    def t_from_log_snr(self, log_snr: Tensor | float) -> Tensor:
        log_snr = self._check_log_snr(log_snr)
        negative = -log_snr
        integral = negative.clamp(min=0) + torch.log1p(torch.exp(-negative.abs()))
        slope = self.beta_max - self.beta_min
        root = torch.sqrt(self.beta_min**2 + 2 * slope * integral)
        return (2 * integral / (self.beta_min + root)).clamp(0, 1)


class CosineVP(VariancePreserving):
    r""":math:`\alpha_t = \cos(\pi t / 2)`, :math:`\sigma_t = \sin(\pi t / 2)`.

    References:
        Nichol and Dhariwal, Improved DDPM, arXiv:2102.09672, Eq. 17 (with offset 0).
    """

    def __call__(self, t: Times) -> tuple[Tensor, Tensor]:
        t = as_times(t)
        return torch.sin(math.pi / 2 * (1 - t)), torch.sin(math.pi / 2 * t)

    def derivatives(self, t: Times) -> tuple[Tensor, Tensor]:
        alpha_t, sigma_t = self(t)
        return -math.pi / 2 * sigma_t, math.pi / 2 * alpha_t

    def log_snr(self, t: Times) -> Tensor:
        alpha_t, sigma_t = self(t)
        return 2 * (alpha_t.log() - sigma_t.log())

    def t_from_log_snr(self, log_snr: Tensor | float) -> Tensor:
        log_snr = self._check_log_snr(log_snr)
        return 2 / math.pi * torch.atan(torch.exp(-log_snr / 2))


@checked
class DiscreteVP(VariancePreserving):
    r"""The variance-preserving schedule through the :math:`N` noise levels of a trained DDPM.

    Level :math:`i` is at :math:`t = (i + 1) / N`, and the log-SNR is linear between levels. Below
    the first level, :math:`\sigma_t / \alpha_t` is linear, 0 at :math:`t = 0`; before a last level
    without signal (zero terminal SNR), :math:`\alpha_t / \sigma_t` is.

    Args:
        alphas_cumprod: :math:`\bar\alpha_i = \alpha^2` of each level, strictly decreasing within
            :math:`(0, 1)`, with shape :math:`(N)`; the last may be 0.

    Raises:
        ValueError: If the levels are fewer than 2, not strictly decreasing, or outside (0, 1).
    """

    def __init__(self, alphas_cumprod: Sequence[float] | Tensor) -> None:
        levels = torch.as_tensor(alphas_cumprod, dtype=torch.float64).flatten()
        if len(levels) < 2:
            raise ValueError(f"alphas_cumprod requires at least 2 levels, got {len(levels)}")
        inside = (levels > 0) & (levels < 1)
        inside[-1] |= levels[-1] == 0
        if not bool(inside.all()):
            i = int((~inside).nonzero()[0])
            raise ValueError(f"alphas_cumprod[{i}] = {levels[i].item()} is outside (0, 1)")
        if bool((levels.diff() >= 0).any()):
            i = int((levels.diff() >= 0).nonzero()[0]) + 1
            raise ValueError(
                f"alphas_cumprod must decrease strictly, got alphas_cumprod[{i}] = "
                f"{levels[i].item()} after {levels[i - 1].item()}"
            )
        self.alphas_cumprod = levels
        self._terminal_zero = bool(levels[-1] == 0)
        knots = levels[:-1] if self._terminal_zero else levels
        self._log_snr = knots.log() - torch.log1p(-knots)
        self._times = torch.arange(1, len(knots) + 1, dtype=torch.float64) / len(levels)

    def log_snr(self, t: Times) -> Tensor:
        t = as_times(t)
        times, values = self._knots(t)
        if len(times) > 1:
            i = torch.searchsorted(times, t.detach().contiguous(), right=True).clamp(
                1, len(times) - 1
            )
            w = (t - times[i - 1]) / (times[i] - times[i - 1])
            inner = values[i - 1] * (1 - w) + values[i] * w
        else:
            inner = values[0].expand(t.shape)
        inner = torch.where(t < times[0], values[0] - 2 * torch.log(t / times[0]), inner)
        if self._terminal_zero:
            last = times[-1]
            tail = values[-1] + 2 * torch.log((1 - t) / (1 - last))
            inner = torch.where(t > last, tail, inner)
        return inner

    def derivatives(self, t: Times) -> tuple[Tensor, Tensor]:
        t = as_times(t)
        times, values = self._knots(t)
        slope = torch.zeros_like(t)
        if len(times) > 1:
            i = torch.searchsorted(times, t.contiguous(), right=True).clamp(1, len(times) - 1)
            slope = (values[i] - values[i - 1]) / (times[i] - times[i - 1])
        alpha_t, sigma_t = self(t)
        d_alpha = slope * alpha_t * sigma_t**2 / 2
        d_sigma = -slope * sigma_t * alpha_t**2 / 2
        # At the ends the log-SNR has an infinite slope; the linear ratios have finite ones.
        ratio = torch.exp(-values[0] / 2) / times[0]
        first = t < times[0]
        d_alpha = torch.where(first, -ratio * sigma_t * alpha_t**2, d_alpha)
        d_sigma = torch.where(first, ratio * alpha_t**3, d_sigma)
        if self._terminal_zero:
            ratio = torch.exp(values[-1] / 2) / (1 - times[-1])
            last = t > times[-1]
            d_alpha = torch.where(last, -ratio * sigma_t**3, d_alpha)
            d_sigma = torch.where(last, ratio * alpha_t * sigma_t**2, d_sigma)
        return d_alpha, d_sigma

    def t_from_log_snr(self, log_snr: Tensor | float) -> Tensor:
        log_snr = self._check_log_snr(log_snr)
        times, values = self._knots(log_snr)
        if len(times) > 1:
            i = torch.searchsorted(-values, -log_snr.contiguous(), right=True).clamp(
                1, len(times) - 1
            )
            w = (log_snr - values[i - 1]) / (values[i] - values[i - 1])
            t = times[i - 1] * (1 - w) + times[i] * w
        else:
            t = times[0].expand(log_snr.shape)
        t = torch.where(log_snr > values[0], times[0] * torch.exp((values[0] - log_snr) / 2), t)
        if self._terminal_zero:
            tail = 1 - (1 - times[-1]) * torch.exp((log_snr - values[-1]) / 2)
            t = torch.where(log_snr < values[-1], tail, t)
        return t.clamp(0, 1)

    def _knots(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return self._times.to(like.device), self._log_snr.to(like.device)

    def __repr__(self) -> str:
        return f"DiscreteVP({len(self.alphas_cumprod)} levels)"
