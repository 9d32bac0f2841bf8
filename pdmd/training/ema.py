"""Exponential moving averages of weights."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from pdmd.arguments import checked
from pdmd.distributed.placement import local_part

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
        self._listed: tuple[nn.Module, list[nn.Parameter], list[nn.Parameter]] | None = None

    @torch.no_grad()
    def update(self, network: N, step: int) -> None:
        """Updates the average after a network's update number ``step``, from 0.

        An offloaded average is only complete after :meth:`wait`, and for the CPU after the device
        is synchronized too.
        """
        decay = min(self.decay, (1 + step) / (10 + step)) if self.decay else 0.0
        listed = self._listed
        if listed is None or listed[0] is not network:  # once, not in every update
            listed = network, list(self.network.parameters()), list(network.parameters())
            self._listed = listed
        average, current = ([local_part(p) for p in parameters] for parameters in listed[1:])
        if average and average[0].dtype != current[0].dtype:  # a copy, without averaging
            assert decay == 0, f"an average in {average[0].dtype} of decay {decay}"
        if average and average[0].device != current[0].device:
            self._update_offloaded(average, current, 1 - decay)
        elif average and average[0].dtype != current[0].dtype:
            torch._foreach_copy_(average, current)  # pyright: ignore[reportPrivateImportUsage]
        else:
            torch._foreach_lerp_(average, current, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        for a, b in zip(self.network.buffers(), network.buffers(), strict=True):
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
                streamed = host.to(device, value.dtype, non_blocking=True)
                host.copy_(streamed.lerp_(value, weight), non_blocking=True)
