"""The conditions of a distillation: prompts, encoded beforehand and drawn at random."""

from __future__ import annotations

import torch
from torch import Tensor

from pdmd.randomness import randint
from pdmd.typing import Condition, Conditions, moved

__all__ = ["ConditionStream"]


class ConditionStream:
    """Draws batches of conditions with replacement.

    Args:
        condition: Every encoded prompt, with batch size :math:`(N)`, in memory or read as it is
            drawn, or ``None``.

    Raises:
        ValueError: If there are no rows.
    """

    def __init__(self, condition: Conditions | None) -> None:
        if condition is not None and not condition.batch_size[0]:
            raise ValueError("there are no prompts to distill on; pass at least one")
        self.condition = condition

    def draw(self, batch: int, generator: torch.Generator) -> Condition:
        """Returns a condition with batch size ``(batch,)``, or ``None``."""
        return self.take(self.rows(batch, generator))

    def rows(self, batch: int, generator: torch.Generator) -> Tensor | None:
        """Draws which conditions a batch has, as int64 of shape :math:`(B)`."""
        if self.condition is None:
            return None
        return randint(int(self.condition.batch_size[0]), batch, generator)

    def take(self, rows: Tensor | None) -> Condition:
        """Returns the conditions that :meth:`rows` drew."""
        if self.condition is None or rows is None:
            return None
        device = getattr(self.condition, "device", None)
        return self.condition[rows if device is None else moved(rows, device)]
