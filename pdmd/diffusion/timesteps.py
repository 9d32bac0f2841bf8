"""Times, and what is kept with a tensor of them.

One batch of times meets many formulas: it is checked once, and the coefficients of a transition
are computed once, until somebody changes it.
"""

from __future__ import annotations

from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from pdmd.typing import Times

__all__ = ["KeptTransition", "as_times"]


def as_times(t: Times) -> Tensor:
    """Views times as float64 and checks that they lie in [0, 1].

    A tensor that passed is not looked at again until it is changed: one batch of times meets many
    formulas. Nor is one that lives on an accelerator, which a check would have to wait for: the
    trainer draws times on the CPU.

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
    if not (low >= 0 and high <= 1):  # also where either is not a number
        bad = t[~((t >= 0) & (t <= 1))].flatten()[0].item()
        raise ValueError(f"time {bad} is outside [0, 1]; 0 is clean data and 1 is noise")
    if not t.is_inference():
        t._checked_times = t._version  # type: ignore[attr-defined]
    return t


class KeptTransition(NamedTuple):
    r"""Coefficients of a transition, kept with the times that they belong to.

    Attributes:
        schedule: The forward process whose coefficients they are.
        s: The cleaner time.
        recorded: Whether gradients were recorded when they were computed.
        version: That of the times, which every change in place raises.
        a: :math:`\alpha_{t|s}`.
        b: :math:`\sigma_{t|s}`.
    """

    schedule: object
    s: float
    recorded: bool
    version: int
    a: Tensor
    b: Tensor

    @classmethod
    def find(cls, schedule: object, s: Times, t: Tensor) -> KeptTransition | None:
        """Returns what times keep, if it would now be computed alike.

        Args:
            schedule: The forward process.
            s: The cleaner time; nothing is kept for a tensor of them.
            t: The noisier times, float64.
        """
        kept: KeptTransition | None = getattr(t, "_transition", None)
        if (
            kept is not None
            and kept.schedule is schedule
            and isinstance(s, float)
            and kept.s == s
            and kept.recorded == torch.is_grad_enabled()
            and kept.version == t._version
            and kept.a._version == kept.b._version == 0
        ):
            return kept
        return None

    @classmethod
    def keep(cls, schedule: object, s: Times, t: Tensor, a: Tensor, b: Tensor) -> None:
        """Keeps coefficients with their times.

        Nothing is kept that a gradient runs through, nor what a compiler or inference mode made.

        Args:
            schedule: The forward process.
            s: The cleaner time; nothing is kept for a tensor of them.
            t: The noisier times, float64.
            a: The first coefficient.
            b: The second.
        """
        made_here = type(t) is Tensor and not any(x.is_inference() for x in (t, a, b))
        if made_here and isinstance(s, float) and not (a.requires_grad or b.requires_grad):
            t._transition = cls(  # type: ignore[attr-defined]
                schedule, s, torch.is_grad_enabled(), t._version, a, b
            )
