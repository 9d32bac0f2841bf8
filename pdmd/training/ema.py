"""Exponential moving averages of weights."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from pdmd.arguments import checked
from pdmd.distributed.collectives import local_part

__all__ = ["Ema"]

N = TypeVar("N", bound=nn.Module)


@checked
class Ema(Generic[N]):
    r"""An exponential moving average of a network's parameters.

    .. math:: \bar\theta_{i+1} = \gamma_i \bar\theta_i + (1 - \gamma_i) \theta_i, \qquad
        \gamma_i = \min\left(\gamma, \frac{1 + i}{10 + i}\right)

    The decay warms up so that the average forgets the initial weights. Buffers are copied.

    Args:
        network: The network to average.
        decay: :math:`\gamma` in [0, 1); 0 copies the current weights.

    Attributes:
        network: The average, frozen. Its parameters may be moved to CPU memory afterwards: an
            update then streams them through the device of the network, beside what it computes.

    Raises:
        ValueError: If the decay is not in [0, 1).
    """

    def __init__(self, network: N, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"an EMA decay must be in [0, 1), got {decay}")
        self.network: N = copy.deepcopy(network).requires_grad_(False).eval()
        self.decay = float(decay)
        self._stream: torch.Stream | None = None
        self._parts: _Parts | None = None

    @torch.no_grad()
    def update(self, network: N, step: int) -> None:
        """Updates the average after a network's update number ``step``, from 0.

        An offloaded average is only complete after :meth:`wait`, and for the CPU after the device
        is synchronized too.
        """
        decay = min(self.decay, (1 + step) / (10 + step)) if self.decay else 0.0
        if self._parts is None or self._parts.network is not network:
            self._parts = _Parts.of(self.network, network)
        average = [local_part(p) for p in self._parts.averages]
        current = [local_part(p) for p in self._parts.parameters]
        if average and average[0].device != current[0].device:
            self._update_offloaded(average, current, 1 - decay)
        elif not decay:  # a copy, which may be of another type
            torch._foreach_copy_(average, current)  # pyright: ignore[reportPrivateImportUsage]
        else:
            torch._foreach_lerp_(average, current, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        for own, other in self._parts.with_buffers:
            for a, b in zip(own.buffers(False), other.buffers(False), strict=True):
                a.copy_(b)

    def wait(self) -> None:
        """Lets the device's computation wait for an update that still reads the network."""
        if self._stream is not None:
            torch.accelerator.current_stream(self._stream.device).wait_stream(self._stream)

    def _update_offloaded(
        self, average: list[Tensor], current: list[Tensor], weight: float
    ) -> None:
        device = current[0].device
        if self._stream is None and device.type != "meta":
            self._stream = torch.Stream(device)
        with self._stream or nullcontext():
            if self._stream is not None:
                self._stream.wait_stream(torch.accelerator.current_stream(device))
            for host, value in zip(average, current, strict=True):
                if weight < 1:
                    value = host.to(device, non_blocking=True).lerp_(value, weight)
                host.copy_(value, non_blocking=True)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Parts:
    """What an update averages, listed once and not in every update.

    Attributes:
        network: The network.
        averages: The parameters of its average.
        parameters: Its parameters.
        with_buffers: The modules of the average and of the network that have buffers, in pairs.
    """

    network: nn.Module
    averages: list[nn.Parameter]
    parameters: list[nn.Parameter]
    with_buffers: list[tuple[nn.Module, nn.Module]]

    @classmethod
    def of(cls, average: nn.Module, network: nn.Module) -> _Parts:
        modules = zip(average.modules(), network.modules(), strict=True)
        return cls(
            network=network,
            averages=list(average.parameters()),
            parameters=list(network.parameters()),
            with_buffers=[(a, b) for a, b in modules if any(True for _ in b.buffers(False))],
        )
