"""Checks of what an objective returned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pdmd.arguments import describe
from pdmd.distillation.phases import Phase

__all__ = ["check_losses"]


def check_losses(name: str, losses: Any, phase: Phase) -> None:
    """Checks what an objective returned, without waiting for the device.

    Args:
        name: The objective, for errors.
        losses: What its ``losses`` returned.
        phase: The phase.

    Raises:
        TypeError: If they are not tensors by name.
        ValueError: If one is not a real scalar.
    """
    where = f"{name} in phase {phase.number}"
    if not isinstance(losses, Mapping):
        raise TypeError(
            f"{where} returned {describe(losses)}; return losses by name, as in "
            "{self.name: loss}"
        )
    for key, value in losses.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise TypeError(
                f"{where} returned {describe(key)}: {describe(value)}; return a tensor by name, "
                "as in {self.name: loss}"
            )
        if value.ndim or not value.is_floating_point():
            raise ValueError(
                f"{where} returned a loss {key!r} of shape {tuple(value.shape)} and type "
                f"{value.dtype}; return one real number, as by loss.mean()"
            )
