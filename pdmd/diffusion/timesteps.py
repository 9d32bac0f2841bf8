"""Tensors of times in [0, 1]: their check, and transition coefficients cached with them.

Several formulas evaluate one batch of times. The tensor is checked once, and the coefficients of
its last transition are computed once, until it is modified in place.
"""

from __future__ import annotations

from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from pdmd.typing import Times

__all__ = ["CachedTransition", "as_times"]


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
