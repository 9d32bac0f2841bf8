"""Health: which updates were skipped, why, and when the run stops.

An update whose loss or gradient is not finite is never applied. A few in a row are tolerated (one
bad batch, one overflow); more mean that the run has diverged, and it stops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pdmd.training.monitoring.accounting import Account
from pdmd.typing import Times

__all__ = ["Health", "NonFiniteError", "Step"]


class NonFiniteError(RuntimeError):
    """Losses or gradients were not finite; those steps were skipped."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """An optimizer step whose outcome is still on the device.

    Attributes:
        finite: Whether losses and gradients are finite, and the step so applied: a scalar flag.
        role: Whose step.
        phase: Number of the phase, from 1.
        update: Number of the cycle, from 0.
        scalars: Losses and gradient norm, by ``role/name``.
        times: Times at which each role was last evaluated.
        lr: The learning rate.
    """

    finite: Tensor
    role: str
    phase: int
    update: int
    scalars: Mapping[str, Tensor]
    times: Mapping[str, Times]
    lr: float

    def warning(self) -> str:
        """Says that the step was skipped, why, and what to do."""
        shown = ", ".join(
            f"{name.split('/')[1].replace('gradient_norm', 'gradient norm')} = {float(value):.4g}"
            for name, value in self.scalars.items()
        )
        return (
            f"phase {self.phase}, update {self.update + 1}: the {self.role}'s loss or gradient is "
            f"not finite ({shown}{Account.evaluated_at(self.times)}); the step was skipped. Lower "
            f"the learning rate (now {self.lr:.3g}), raise the time margin, or inspect the "
            "teacher's predictions in this phase."
        )


class Health:
    """Counts skipped steps of each role.

    Args:
        max_consecutive_skips: Steps of a role that may be skipped in a row before the run stops.

    Raises:
        ValueError: If it is negative.
    """

    def __init__(self, max_consecutive_skips: int = 3) -> None:
        if max_consecutive_skips < 0:
            raise ValueError(
                f"max_consecutive_skips must be at least 0, got {max_consecutive_skips}"
            )
        self.max_consecutive_skips = int(max_consecutive_skips)
        self.warnings: list[str] = []
        self._in_a_row: dict[str, int] = {}

    def settle(self, steps: Sequence[Step]) -> None:
        """Waits for the device, and counts which steps it applied and which it skipped.

        Raises:
            NonFiniteError: If too many in a row were skipped.
        """
        if not steps:
            return
        flags = torch.stack([step.finite for step in steps]).tolist()
        for applied, step in zip(flags, steps, strict=True):
            if applied:
                self.applied(step.role)
            else:
                self.skipped(step.role, step.warning())

    def applied(self, role: str) -> None:
        """Counts a step of a role that was applied."""
        self._in_a_row[role] = 0

    def skipped(self, role: str, warning: str) -> None:
        """Counts a step of a role that was skipped.

        Raises:
            NonFiniteError: If too many in a row were.
        """
        count = self._in_a_row[role] = self._in_a_row.get(role, 0) + 1
        self.warnings.append(warning)
        if count > self.max_consecutive_skips:
            again = f" {count} steps of the {role} in a row were skipped." if count > 1 else ""
            raise NonFiniteError(warning + again)

    def state(self) -> dict[str, int]:
        """Returns what a checkpoint keeps."""
        return dict(self._in_a_row)

    def restore(self, state: Mapping[str, int]) -> None:
        """Restores what :meth:`state` returned."""
        self._in_a_row = dict(state)

    def drain(self) -> list[str]:
        """Returns the warnings since the last call."""
        drained, self.warnings = self.warnings, []
        return drained
