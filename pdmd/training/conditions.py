"""Conditions: encoded prompts, sampled uniformly with replacement."""

from __future__ import annotations

import torch
from torch import Tensor

from pdmd.randomness import randint
from pdmd.typing import Condition, Conditions, moved

__all__ = ["ConditionStream"]


class ConditionStream:
    """Samples batches of conditions with replacement.

    Args:
        condition: Every encoded prompt, with batch size :math:`(N)`, in memory or read on
            access; ``None`` for unconditional models.

    Raises:
        ValueError: If there are no rows.
    """

    def __init__(self, condition: Conditions | None) -> None:
        if condition is not None and not condition.batch_size[0]:
            raise ValueError("there are no prompts to distill on; pass at least one")
        self.condition = condition
        self._device: torch.device | None = getattr(condition, "device", None)

    def draw(self, batch: int, generator: torch.Generator) -> Condition:
        """Samples conditions with batch size ``(batch,)``; ``None`` if unconditional."""
        return self.take(self.rows(batch, generator))

    def rows(self, batch: int, generator: torch.Generator) -> Tensor | None:
        """Samples the indices of a batch of conditions, int64 of shape :math:`(B)`."""
        if self.condition is None:
            return None
        return randint(int(self.condition.batch_size[0]), batch, generator)

    def take(self, rows: Tensor | None) -> Condition:
        """Returns the conditions at the indices that :meth:`rows` sampled."""
        if self.condition is None or rows is None:
            return None
        return self.condition[rows if self._device is None else moved(rows, self._device)]
