"""Tensors of times in [0, 1]: their check, their common interval, and cached transitions.

Several formulas evaluate one batch of times. The tensor is checked once, and the coefficients of
its last transition are computed once, until it is modified in place.

A time sampler that draws all times of a batch from one interval, on all ranks alike, attaches the
interval to the tensor. A routed denoiser then knows which network to evaluate without reading
times from the device and without communication.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from pdmd.typing import Times

__all__ = [
    "CachedTransition",
    "as_times",
    "current_interval",
    "evaluating",
    "interval_of",
    "within",
]


def as_times(t: Times) -> Tensor:
    """Returns times in float64, checked to be in [0, 1].

    A tensor that passed is not checked again until it is modified in place. Tensors on an
    accelerator are not checked, which would synchronize it: the trainer samples times on the CPU.

    Args:
        t: A float or a tensor of any shape.

    Raises:
        TypeError: If it is neither a number nor a tensor of real numbers.
        ValueError: If a time is outside [0, 1] or not finite.
    """
    if isinstance(t, Tensor):
        if t.dtype is torch.bool or t.is_complex():
            raise TypeError(f"times are real numbers in [0, 1], got a tensor of {t.dtype}")
        if t.dtype is not torch.float64:
            t = t.to(torch.float64)
        if not t.is_cpu:
            return t
        if not t.is_inference() and getattr(t, "_checked_times", None) == t._version:
            return t
        low, high = (v.item() for v in torch.aminmax(t)) if t.numel() else (0.0, 1.0)
    else:
        if isinstance(t, bool) or not isinstance(t, Real):
            raise TypeError(
                f"a time is a number or a tensor in [0, 1], got {t!r:.60}; pass a float or a "
                "torch.Tensor"
            )
        low = high = float(t)
        t = torch.as_tensor(t, dtype=torch.float64)
    if not (low >= 0 and high <= 1):  # also if either is NaN
        bad = t[~((t >= 0) & (t <= 1))].flatten()[0].item()
        raise ValueError(f"time {bad} is outside [0, 1]; 0 is clean data and 1 is noise")
    if not t.is_inference():
        t._checked_times = t._version  # type: ignore[attr-defined]
    return t


class CachedTransition(NamedTuple):
    r"""Coefficients of a transition, cached as an attribute of the tensor of its times.

    Attributes:
        schedule: The forward process.
        s: The cleaner time.
        grad_enabled: Whether gradients were enabled when the coefficients were computed.
        version: Version of the tensor of times, which every in-place modification increments.
        a: :math:`\alpha_{t|s}`.
        b: :math:`\sigma_{t|s}`.
    """

    schedule: object
    s: float
    grad_enabled: bool
    version: int
    a: Tensor
    b: Tensor

    @classmethod
    def find(cls, schedule: object, s: Times, t: Tensor) -> CachedTransition | None:
        """Returns the transition cached with ``t``, or ``None`` if it is another or outdated.

        Args:
            schedule: The forward process.
            s: The cleaner time; only floats are cached.
            t: The noisier times, float64.
        """
        cached: CachedTransition | None = getattr(t, "_transition", None)
        if (
            cached is not None
            and cached.schedule is schedule
            and isinstance(s, float)
            and cached.s == s
            and cached.grad_enabled == torch.is_grad_enabled()
            and cached.version == t._version
            and cached.a._version == cached.b._version == 0
        ):
            return cached
        return None

    @classmethod
    def store(cls, schedule: object, s: Times, t: Tensor, a: Tensor, b: Tensor) -> None:
        r"""Caches coefficients with their times.

        Coefficients that require gradients, and tensors of a compiler or of inference mode, are
        not cached.

        Args:
            schedule: The forward process.
            s: The cleaner time; only floats are cached.
            t: The noisier times, float64.
            a: :math:`\alpha_{t|s}`.
            b: :math:`\sigma_{t|s}`.
        """
        cacheable = type(t) is Tensor and not any(x.is_inference() for x in (t, a, b))
        if cacheable and isinstance(s, float) and not (a.requires_grad or b.requires_grad):
            t._transition = cls(  # type: ignore[attr-defined]
                schedule, s, torch.is_grad_enabled(), t._version, a, b
            )


def within(t: Tensor, low: float, high: float) -> Tensor:
    """Attaches to times the interval that contains those of all rows on all ranks.

    Args:
        t: Times, float64, with shape :math:`(B)`.
        low: The lower end, the same on all ranks.
        high: The upper end, the same on all ranks.

    Returns:
        ``t`` itself. Tensors computed from it have no interval.
    """
    t._interval = (low, high, t._version)  # type: ignore[attr-defined]
    return t


def interval_of(t: Times) -> tuple[float, float] | None:
    """Returns the interval that contains the times of all rows on all ranks, if it is known.

    A float, or a tensor of one time on the CPU, is taken to be the same on all ranks. Other
    tensors have the interval that :func:`within` attached, unless they were modified in place.
    Nothing is read from the device.

    Args:
        t: A float or a tensor of any shape.
    """
    if not isinstance(t, Tensor):
        return float(t), float(t)
    if t.ndim == 0 and t.is_cpu:
        return t.item(), t.item()
    low, high, version = getattr(t, "_interval", (0.0, 0.0, None))
    return (low, high) if version is not None and version == t._version else None


_interval: ContextVar[tuple[float, float] | None] = ContextVar("interval", default=None)


@contextlib.contextmanager
def evaluating(t: Times) -> Iterator[None]:
    """Makes the interval of the times of a call known within it, if there is one.

    Within the call the times may be moved to the device, repeated or padded.

    Args:
        t: The times of the call.
    """
    interval = interval_of(t)
    if interval is None:
        yield
        return
    token = _interval.set(interval)
    try:
        yield
    finally:
        _interval.reset(token)


def current_interval() -> tuple[float, float] | None:
    """Returns the interval of the times of the current call, if it is known."""
    return _interval.get()
