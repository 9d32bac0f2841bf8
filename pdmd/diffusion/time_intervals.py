"""Intervals of times: what is known of the times of a call on all ranks, without reading them.

A time sampler that draws all times of a batch from one interval, on all ranks alike, attaches the
interval to their tensor. A routed denoiser then knows which network to evaluate without reading
times from the device and without communication.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from torch import Tensor

from pdmd.typing import Times

__all__ = ["current_interval", "evaluating", "interval_of", "within"]


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
