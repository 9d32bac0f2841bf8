"""Exponential moving averages of weights."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

from pdmd.distributed.placement import local_part

__all__ = ["Ema"]

N = TypeVar("N", bound=nn.Module)


class Ema(Generic[N]):
    r"""An average of a network's parameters, :math:`\bar\theta \leftarrow \gamma \bar\theta +
    (1 - \gamma) \theta`.

    The rate warms up as :math:`\min(\gamma, (1 + i) / (10 + i))`, so that early averages forget
    the start.

    Args:
        network: The network to follow.
        decay: :math:`\gamma` in [0, 1); 0 keeps the current weights.

    Raises:
        ValueError: If the decay is not in [0, 1).
    """

    def __init__(self, network: N, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"an EMA decay is in [0, 1), got {decay}")
        self.network: N = copy.deepcopy(network).requires_grad_(False).eval()
        self.decay = float(decay)

    @torch.no_grad()
    def update(self, network: N, step: int) -> None:
        """Moves the average towards a network after its update number ``step``, from 0."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.decay else 0.0
        average = [local_part(p) for p in self.network.parameters()]
        current = [local_part(p) for p in network.parameters()]
        torch._foreach_lerp_(average, current, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        for a, b in zip(self.network.buffers(), network.buffers(), strict=True):
            a.copy_(b)
