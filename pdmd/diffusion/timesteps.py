"""Tensors of times in [0, 1]: their check, and the coefficients that are cached with them.

Several formulas evaluate one batch of times, and a phase's timesteps stay the same throughout its
training. A tensor of times is checked once, and the coefficients at its times are computed once,
until it is modified in place. A number has one tensor, on the CPU, which serves every device: the
coefficients at a timestep are then computed once for all updates of a phase, and reach a kernel
as its arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache
from numbers import Real

import torch
from torch import Tensor

from pdmd.typing import Times

__all__ = ["as_times", "cached_at", "lowest"]

_MOST = 64  # coefficients cached with one tensor, which may be that of a number for good


def as_times(t: Times) -> Tensor:
    """Returns times in float64, checked to be in [0, 1].

    A tensor that passed is not checked again until it is modified in place. Tensors on an
    accelerator are not checked, which would synchronize it: the trainer samples times on the CPU.
    A number becomes a scalar on the CPU, the same for every call.

    Args:
        t: A float or a tensor of any shape.

    Raises:
        TypeError: If it is neither a number nor a tensor of real numbers.
        ValueError: If a time is outside [0, 1] or not finite.
    """
    if not isinstance(t, Tensor):
        if type(t) is not float and (isinstance(t, bool) or not isinstance(t, Real)):
            raise TypeError(
                f"a time is a number or a tensor in [0, 1], got {t!r:.60}; pass a float or a "
                "torch.Tensor"
            )
        if not 0 <= t <= 1:  # also NaN, and integers that are no float
            raise ValueError(f"time {t!s:.40} is outside [0, 1]; 0 is clean data and 1 is noise")
        scalar = _scalar(float(t))
        return scalar if scalar._version == 0 else scalar.new_tensor(float(t))
    checked = getattr(t, "_checked_times", None)
    if checked is not None and checked[0] == t._version:
        return t
    if t.dtype is torch.bool or t.is_complex():
        raise TypeError(f"times are real numbers in [0, 1], got a tensor of {t.dtype}")
    if t.dtype is not torch.float64:
        t = t.to(torch.float64)
    if not t.is_cpu:
        return t
    low, high = (v.item() for v in torch.aminmax(t)) if t.numel() else (1.0, 1.0)
    if not (low >= 0 and high <= 1):  # also if either is NaN
        bad = t[~((t >= 0) & (t <= 1))].flatten()[0].item()
        raise ValueError(f"time {bad} is outside [0, 1]; 0 is clean data and 1 is noise")
    if not t.is_inference():
        t._checked_times = (t._version, low)  # type: ignore[attr-defined]
    return t


@lru_cache(maxsize=1024)
def _scalar(t: float) -> Tensor:
    """Returns a checked time as a tensor, which must not be modified in place."""
    with torch.inference_mode(False):
        scalar = torch.tensor(t, dtype=torch.float64, device="cpu")
    scalar._checked_times = (0, t)  # type: ignore[attr-defined]
    return scalar


def lowest(t: Tensor) -> float | None:
    """Returns the lowest of times that :func:`as_times` has checked, ``None`` if it has not."""
    checked = getattr(t, "_checked_times", None)
    return checked[1] if checked is not None and checked[0] == t._version else None


def cached_at(
    t: Tensor, owner: object, key: Hashable, compute: Callable[[], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """Returns coefficients at times, computed once and cached as an attribute of their tensor.

    Coefficients are computed again once the times or a coefficient were modified in place, and
    for the other gradient mode. Those that require gradients, and tensors of a compiler or of
    inference mode, are not cached.

    Args:
        t: The times, float64, of any shape.
        owner: The forward process, compared by identity.
        key: What else the coefficients depend on.
        compute: Computes them, float64, each with the shape of the times or :math:`()`.

    Returns:
        The coefficients, which must not be modified in place.
    """
    if type(t) is not Tensor or t.is_inference():
        return compute()
    version = t._version
    cache = getattr(t, "_coefficients", None)
    if cache is None or cache[0] != version:
        cache = t._coefficients = (version, {})  # type: ignore[attr-defined]
    place = (id(owner), key, torch.is_grad_enabled())
    found = cache[1].get(place)
    if found is not None and found[0] is owner and not any(c._version for c in found[1]):
        return found[1]
    values = compute()
    if not any(c.requires_grad or c.is_inference() or c._version for c in values):
        if len(cache[1]) >= _MOST:
            cache[1].clear()
        cache[1][place] = (owner, values)
    return values
