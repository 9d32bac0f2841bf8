"""Health: counts skipped updates, and stops a run that has diverged.

An update whose loss or gradient is not finite is skipped. A few skips in a row are tolerated (one
bad batch, one overflow); more mean that the run has diverged, and it stops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pdmd.arguments import checked
from pdmd.training.monitoring.accounting import Account
from pdmd.typing import Times

__all__ = ["Health", "NonFiniteError", "Step"]


class NonFiniteError(RuntimeError):
    """Too many consecutive steps were skipped for losses or gradients that are not finite."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """An optimizer step whose outcome has not been read from the device yet.

    Attributes:
        finite: Scalar flag: losses and gradients are finite, so the step was applied.
        role: The role that was updated.
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
        """Returns a message with the cause of the skipped step and a remedy."""
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


@checked
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
        self._consecutive: dict[str, int] = {}

    def settle(self, steps: Sequence[Step]) -> None:
        """Synchronizes with the device, and counts applied and skipped steps.

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
        """Counts an applied step of a role."""
        self._consecutive[role] = 0

    def skipped(self, role: str, warning: str) -> None:
        """Counts a skipped step of a role.

        Raises:
            NonFiniteError: If too many in a row were skipped.
        """
        count = self._consecutive[role] = self._consecutive.get(role, 0) + 1
        self.warnings.append(warning)
        if count > self.max_consecutive_skips:
            again = f" {count} steps of the {role} in a row were skipped." if count > 1 else ""
            raise NonFiniteError(warning + again)

    def state(self) -> dict[str, int]:
        """Returns the state for a checkpoint."""
        return dict(self._consecutive)

    def restore(self, state: Mapping[str, int]) -> None:
        """Restores what :meth:`state` returned."""
        self._consecutive = dict(state)

    def drain(self) -> list[str]:
        """Returns the warnings since the last call."""
        drained, self.warnings = self.warnings, []
        return drained
