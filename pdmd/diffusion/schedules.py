r"""Noise schedules.

A schedule fixes the forward process

.. math:: x_t = \alpha_t x_0 + \sigma_t \varepsilon, \qquad \varepsilon \sim \mathcal N(0, I),

for :math:`t \in [0, 1]`, 0 clean and 1 noise, and with it the log signal-to-noise ratio
:math:`\lambda_t = 2 \log (\alpha_t / \sigma_t)`, strictly decreasing in :math:`t`. For
:math:`s < t` the same process carries :math:`x_s` to :math:`x_t = \alpha_{t|s} x_s +
\sigma_{t|s} \varepsilon` with

.. math::
    \alpha_{t|s} = \alpha_t / \alpha_s, \qquad
    \sigma_{t|s}^2 = \sigma_t^2 - \alpha_{t|s}^2 \sigma_s^2
                   = \sigma_t^2 \left(1 - e^{\lambda_t - \lambda_s}\right).

The code evaluates the last form: it loses no digits as :math:`t \to s`, and gives
:math:`\sigma_{t|s} = \sigma_t` to the bit at :math:`\sigma_s = 0`. All coefficients are float64.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pdmd.arguments import checked
from pdmd.diffusion.timesteps import as_times, cached_at, lowest
from pdmd.typing import Times

__all__ = [
    "RectifiedFlow",
    "Schedule",
    "Shifted",
    "Truncated",
    "VarianceExploding",
    "same_process",
]


class Schedule(ABC):
    r"""The coefficients of a forward process.

    A subclass implements :meth:`__call__`; all other methods have defaults that are exact up to
    rounding, and may be overridden with closed forms. :math:`\alpha_t / \sigma_t` must be strictly
    decreasing in :math:`t`.
    """

    @abstractmethod
    def __call__(self, t: Times) -> tuple[Tensor, Tensor]:
        r"""Returns :math:`(\alpha_t, \sigma_t)` in float64, with the shape of ``t``."""

    def derivatives(self, t: Times) -> tuple[Tensor, Tensor]:
        r"""Returns the time derivatives :math:`(\dot\alpha_t, \dot\sigma_t)` in float64.

        The default differentiates :meth:`__call__` automatically.
        """
        with torch.enable_grad():
            t = as_times(t).detach().requires_grad_(True)
            out = []
            for value in self(t):
                grad = None
                if value.requires_grad:
                    (grad,) = torch.autograd.grad(value.sum(), t, allow_unused=True)
                out.append(torch.zeros_like(t) if grad is None else grad)
        return out[0].detach(), out[1].detach()

    def log_snr(self, t: Times) -> Tensor:
        r"""Returns :math:`\lambda_t = 2 \log(\alpha_t / \sigma_t)`."""
        alpha_t, sigma_t = self(t)
        return 2 * (alpha_t.log() - sigma_t.log())

    def t_from_log_snr(self, log_snr: Tensor | float) -> Tensor:
        r"""Inverts :meth:`log_snr`.

        The default bisects to the last bit of float64.

        Args:
            log_snr: :math:`\lambda`, of any shape.

        Returns:
            :math:`t` with :math:`\lambda_t = \lambda`, in float64, of the same shape.

        Raises:
            ValueError: If a value is outside the log-SNRs of the schedule on [0, 1].
        """
        log_snr = self._check_log_snr(log_snr)
        low, high = torch.zeros_like(log_snr), torch.ones_like(log_snr)
        for _ in range(1100):
            middle = (low + high) / 2
            cleaner = self.log_snr(middle) > log_snr
            new_low, new_high = (
                torch.where(cleaner, middle, low),
                torch.where(cleaner, high, middle),
            )
            if torch.equal(new_low, low) and torch.equal(new_high, high):
                break
            low, high = new_low, new_high
        return torch.where(log_snr >= self.log_snr(0.0), 0.0, (low + high) / 2)

    def transition(self, s: Times, t: Times) -> tuple[Tensor, Tensor]:
        r"""Returns :math:`(\alpha_{t|s}, \sigma_{t|s})` in float64.

        The result for the last :math:`s` is cached with the tensor of times, since several
        formulas evaluate one batch of times at one phase's end.

        By default :math:`\sigma_{t|s}` comes from the difference of two log-SNRs, so its relative
        error is about :math:`10^{-16} |\lambda_s| / |\lambda_t - \lambda_s|` beyond rounding: some
        :math:`10^{-8}` at :math:`t - s = 10^{-9}`, below :math:`10^{-13}` at :math:`10^{-3}`. On
        rectified flow a closed form is exact up to rounding at all times.

        Args:
            s: The cleaner time, in :math:`[0, 1)`.
            t: The noisier time, in :math:`(s, 1]`; broadcasts with ``s``.

        Raises:
            ValueError: If :math:`s \geq t` anywhere.

        References:
            Kingma et al., Variational Diffusion Models, arXiv:2107.00630, Appendix A.
        """
        t = as_times(t)
        if isinstance(s, float):
            end = s
            a, b = cached_at(t, self, end, lambda: self._checked_transition(end, t))
            return a, b
        return self._checked_transition(s, t)

    def _checked_transition(self, s: Times, t: Tensor) -> tuple[Tensor, Tensor]:
        end, s = s, as_times(s)
        if s.ndim and t.ndim and len(s) != len(t) and 1 not in (len(s), len(t)):
            raise ValueError(
                f"s has shape {tuple(s.shape)} and t {tuple(t.shape)}; give one time, or one for "
                "each sample of one batch"
            )
        low = lowest(t) if isinstance(end, float) else None
        if (low is None or end >= low) and s.is_cpu and t.is_cpu and bool((s >= t).any()):
            s_all, t_all = torch.broadcast_tensors(s, t)
            i = int((s_all >= t_all).flatten().nonzero()[0])
            raise ValueError(
                f"a transition goes from s to a noisier time t > s, "
                f"got s = {s_all.flatten()[i].item()}, t = {t_all.flatten()[i].item()}"
            )
        return self._transition(s, t)

    def _transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the coefficients of a transition between checked times."""
        (alpha_s, _), (alpha_t, sigma_t) = self(s), self(t)
        log_snr_change = self.log_snr(t) - self.log_snr(s)
        return alpha_t / alpha_s, sigma_t * torch.sqrt(-torch.expm1(log_snr_change))

    def prior_std(self) -> float:
        r"""Returns the standard deviation of the noise that sampling starts from at :math:`t = 1`.

        .. math:: \sqrt{\alpha_1^2 + \sigma_1^2}

        is that of :math:`x_1` for data of unit variance: :math:`\sigma_1` where no signal is left,
        and 1 on every variance-preserving schedule, as in that family's samplers.
        """
        alpha, sigma = self(1.0)
        return float(torch.sqrt(alpha**2 + sigma**2))

    def _check_log_snr(self, log_snr: Tensor | float) -> Tensor:
        log_snr = torch.as_tensor(log_snr, dtype=torch.float64)
        top, bottom = float(self.log_snr(0.0)), float(self.log_snr(1.0))
        slack = torch.where(log_snr.isinf(), 0.0, 1e-9 * (1 + log_snr.abs()))
        bad = ~((log_snr <= top + slack) & (log_snr >= bottom - slack))
        if bool(bad.any()):
            raise ValueError(
                f"log-SNR {log_snr[bad].flatten()[0].item()} is outside the range of this "
                f"schedule, [{bottom:.4g}, {top:.4g}]"
            )
        return log_snr

    def __repr__(self) -> str:
        arguments = ", ".join(
            f"{k}={v!r}" for k, v in vars(self).items() if not isinstance(v, Tensor)
        )
        return f"{type(self).__name__}({arguments})"


@checked
def same_process(a: Schedule, b: Schedule) -> bool:
    """Returns whether two schedules have equal coefficients, on a grid of times.

    Args:
        a: A schedule.
        b: A schedule of any class.
    """
    if a is b:
        return True
    t = torch.linspace(0.0, 1.0, 17, dtype=torch.float64)
    return all(
        torch.allclose(own, other, rtol=1e-6, atol=1e-9)
        for own, other in zip(a(t), b(t), strict=True)
    )


class RectifiedFlow(Schedule):
    r""":math:`\alpha_t = 1 - t`, :math:`\sigma_t = t`.

    References:
        Liu et al., Flow Straight and Fast, arXiv:2209.03003.
    """

    def __call__(self, t: Times) -> tuple[Tensor, Tensor]:
        t = as_times(t)
        return 1 - t, t

    def derivatives(self, t: Times) -> tuple[Tensor, Tensor]:
        t = as_times(t)
        return torch.full_like(t, -1), torch.ones_like(t)

    def log_snr(self, t: Times) -> Tensor:
        t = as_times(t)
        return 2 * (torch.log1p(-t) - t.log())

    def t_from_log_snr(self, log_snr: Tensor | float) -> Tensor:
        return torch.sigmoid(-self._check_log_snr(log_snr) / 2)

    def _transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        # (1 - s)^2 b^2 = (t - s) (t (1 - s) + s (1 - t)): no difference of nearly equal terms
        # but t - s, which is exact.
        clean, clean_t = 1 - s, 1 - t
        return clean_t / clean, torch.sqrt((t - s) * (t * clean + s * clean_t)) / clean


@checked
class Shifted(Schedule):
    r"""A schedule run on the warped time :math:`t' = k t / (1 + (k - 1) t)`.

    A shift :math:`k > 1` spends more of :math:`[0, 1]` near noise, for high resolutions; on
    rectified flow it lowers the log-SNR by :math:`2 \log k` at every time.

    Args:
        base: The schedule to warp.
        shift: :math:`k > 0`.

    Raises:
        ValueError: If the shift is not a positive finite number.

    References:
        Esser et al., Scaling Rectified Flow Transformers, arXiv:2403.03206, Eq. 23.
    """

    def __init__(self, base: Schedule, shift: float) -> None:
        self.base = base
        self.shift = check_shift(shift)

    def warp(self, t: Times) -> Tensor:
        """Returns the base schedule's time at ``t``."""
        return shift_times(as_times(t), self.shift)

    def __call__(self, t: Times) -> tuple[Tensor, Tensor]:
        return self.base(self.warp(t))

    def derivatives(self, t: Times) -> tuple[Tensor, Tensor]:
        t = as_times(t)
        slope = self.shift / (1 + (self.shift - 1) * t) ** 2
        d_alpha, d_sigma = self.base.derivatives(self.warp(t))
        return d_alpha * slope, d_sigma * slope

    def log_snr(self, t: Times) -> Tensor:
        return self.base.log_snr(self.warp(t))

    def t_from_log_snr(self, log_snr: Tensor | float) -> Tensor:
        return shift_times(self.base.t_from_log_snr(log_snr), 1 / self.shift)


@checked
class Truncated(Schedule):
    r"""A schedule truncated at one of its times, :math:`t' = t_{\max} t`.

    Some signal is left at :math:`t = 1`, for teachers whose noisiest level is not pure noise: see
    :class:`~pdmd.teachers.WithSchedule`.

    Args:
        base: The schedule to truncate.
        t_max: The base schedule's time at :math:`t = 1`, in (0, 1].

    Raises:
        ValueError: If ``t_max`` is outside (0, 1].
    """

    def __init__(self, base: Schedule, t_max: float) -> None:
        if not 0 < t_max <= 1:
            raise ValueError(f"t_max must be in (0, 1], got {t_max}")
        self.base, self.t_max = base, float(t_max)

    def __call__(self, t: Times) -> tuple[Tensor, Tensor]:
        return self.base(self.t_max * as_times(t))

    def derivatives(self, t: Times) -> tuple[Tensor, Tensor]:
        d_alpha, d_sigma = self.base.derivatives(self.t_max * as_times(t))
        return self.t_max * d_alpha, self.t_max * d_sigma

    def log_snr(self, t: Times) -> Tensor:
        return self.base.log_snr(self.t_max * as_times(t))

    def t_from_log_snr(self, log_snr: Tensor | float) -> Tensor:
        return (self.base.t_from_log_snr(self._check_log_snr(log_snr)) / self.t_max).clamp(0, 1)


def check_shift(shift: float) -> float:
    """Returns a shift as a float, checked.

    Raises:
        ValueError: If it is not a positive finite number.
    """
    if not (math.isfinite(shift) and shift > 0):
        raise ValueError(f"a shift must be positive and finite, got {shift}; 1 means no shift")
    return float(shift)


def shift_times(t: Tensor, shift: float) -> Tensor:
    r"""Returns :math:`k t / (1 + (k - 1) t)`, which maps 0 to 0 and 1 to 1 exactly.

    Args:
        t: Times in [0, 1], float64, of any shape.
        shift: :math:`k > 0`; the inverse map has shift :math:`1 / k`.
    """
    warped = shift * t / (1 + (shift - 1) * t)
    return torch.where(t == 1, torch.ones_like(t), warped)


@checked
class VarianceExploding(Schedule):
    r""":math:`\alpha_t = 1`, :math:`\sigma_t = (\sigma_{\min}^{1/\rho} (1 - t) +
    \sigma_{\max}^{1/\rho} t)^\rho`.

    With the default :math:`\sigma_{\min} = 0`, time 0 is exactly clean data. Noise below about
    :math:`10^{-7}` of the data is lost in float32, with the defaults at :math:`t < 0.05`: sample
    times above.

    Args:
        sigma_max: :math:`\sigma_{\max}`, the noise at :math:`t = 1`.
        sigma_min: :math:`\sigma_{\min}`, the noise at :math:`t = 0`; 0 or more.
        rho: :math:`\rho`, at least 1; higher values spend more of [0, 1] at low noise.

    Raises:
        ValueError: If not :math:`0 \leq \sigma_{\min} < \sigma_{\max} < \infty` or not
            :math:`1 \leq \rho < \infty`.

    References:
        Karras et al., EDM, arXiv:2206.00364, Eq. 5.
    """

    def __init__(self, sigma_max: float = 80.0, sigma_min: float = 0.0, rho: float = 7.0) -> None:
        if not (0 <= sigma_min < sigma_max < math.inf):
            raise ValueError(
                f"expected 0 <= sigma_min < sigma_max, got sigma_min = {sigma_min}, "
                f"sigma_max = {sigma_max}"
            )
        if not (1 <= rho < math.inf):
            raise ValueError(f"rho must be at least 1, got {rho}")
        self.sigma_max, self.sigma_min, self.rho = float(sigma_max), float(sigma_min), float(rho)

    def _root(self, t: Tensor) -> Tensor:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return low * (1 - t) + high * t

    def __call__(self, t: Times) -> tuple[Tensor, Tensor]:
        t = as_times(t)
        return torch.ones_like(t), self._root(t) ** self.rho

    def derivatives(self, t: Times) -> tuple[Tensor, Tensor]:
        t = as_times(t)
        slope = self.sigma_max ** (1 / self.rho) - self.sigma_min ** (1 / self.rho)
        return torch.zeros_like(t), self.rho * self._root(t) ** (self.rho - 1) * slope

    def log_snr(self, t: Times) -> Tensor:
        return -2 * self.rho * torch.log(self._root(as_times(t)))

    def t_from_log_snr(self, log_snr: Tensor | float) -> Tensor:
        root = torch.exp(-self._check_log_snr(log_snr) / (2 * self.rho))
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return ((root - low) / (high - low)).clamp(0, 1)
