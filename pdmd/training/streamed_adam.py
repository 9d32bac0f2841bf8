r"""AdamW that updates one parameter after the other, with moments stored in another way.

The update is that of :class:`torch.optim.AdamW`. A parameter's moments are brought to its device
in float32 for its update only, so moments may be stored in 8 bits, or in CPU memory: they are then
copied to the device while the parameter before is updated, and back while the next one is.

References:
    Loshchilov and Hutter, Decoupled weight decay regularization, arXiv:1711.05101, Algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from pdmd.training.moments import MomentFormat

__all__ = ["StreamedAdam"]

Parts = dict[str, Tensor]
MOMENTS = ("exp_avg", "exp_avg_sq")


class StreamedAdam(torch.optim.Optimizer):
    """AdamW with moments in a format, on the device or in CPU memory.

    Args:
        parameters: The parameters, in float32; they may be sharded.
        lr: The learning rate.
        betas: Decay rates of the two moments.
        weight_decay: Decoupled weight decay.
        moments: The format of the moments.
        offload: Whether moments are kept in CPU memory, pinned where parameters are on an
            accelerator.

    Attributes:
        found_inf: Set before a step: 1 to skip it, else 0, on the device of the parameters.
    """

    found_inf: Tensor

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        moments: MomentFormat,
        offload: bool,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay})
        self.moments, self.offload = moments, offload

    def blank_state(self, parameter: Tensor) -> Parts:
        """Returns a parameter's state before its first step, by name."""
        state: Parts = {"step": torch.zeros((), device=parameter.device)}
        for name in MOMENTS:
            for key, value in self.moments.zeros(parameter, name).items():
                state[key] = to_host(value) if self.offload else value
        return state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Updates the parameters that have gradients."""
        work = [
            (group, parameter)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        if not work:
            return
        for _, parameter in work:
            if not self.state[parameter]:
                self.state[parameter] = self.blank_state(parameter)
        skip = self.__dict__.pop("found_inf", torch.zeros((), device=work[0][1].device))
        stream = _Copies(work[0][1].device) if self.offload else None
        loaded = self._load(work[0][1], stream)
        for i, (group, parameter) in enumerate(work):
            parts = loaded
            if stream is not None:
                stream.arrived(parts)
            if i + 1 < len(work):
                loaded = self._load(work[i + 1][1], stream)
            self._update(group, parameter, parts, skip)
            if stream is not None:
                stream.back(self._local(parameter), parts)
        if stream is not None:
            stream.finish()

    def _local(self, parameter: Tensor) -> Parts:
        return {key: _part(value) for key, value in self.state[parameter].items()}

    def _load(self, parameter: Tensor, stream: _Copies | None) -> Parts:
        parts = self._local(parameter)
        return parts if stream is None else stream.fetch(parts)

    def _update(
        self, group: dict[str, Any], parameter: Tensor, parts: Parts, skip: Tensor
    ) -> None:
        value, gradient = _part(parameter), _part(parameter.grad)  # type: ignore[arg-type]
        read = [self.moments.read(parts, name) for name in MOMENTS]
        adamw(
            [value],
            [gradient],
            [read[0]],
            [read[1]],
            [],
            [parts["step"]],
            fused=True,
            found_inf=skip,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=1e-8,
            maximize=False,
        )
        for name, moment in zip(MOMENTS, read, strict=True):
            self.moments.write(parts, name, moment, skip.bool())


class _Copies:
    """Copies between CPU memory and a device, beside its computation where it has streams."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.streams = None
        if device.type not in ("cpu", "meta"):
            self.streams = (torch.Stream(device), torch.Stream(device))
            for stream in self.streams:
                stream.wait_stream(torch.accelerator.current_stream(device))

    def fetch(self, parts: Parts) -> Parts:
        """Starts to copy tensors to the device."""
        if self.streams is None:
            return {key: value.to(self.device, copy=True) for key, value in parts.items()}
        with self.streams[0]:
            return {key: value.to(self.device, non_blocking=True) for key, value in parts.items()}

    def arrived(self, parts: Parts) -> None:
        """Lets the device's computation wait for tensors that are being fetched."""
        if self.streams is not None:
            computing = torch.accelerator.current_stream(self.device)
            computing.wait_stream(self.streams[0])
            for value in parts.values():
                value.record_stream(computing)

    def back(self, host: Parts, parts: Parts) -> None:
        """Starts to copy tensors back, once the device's computation so far is done."""
        if self.streams is not None:
            self.streams[1].wait_stream(torch.accelerator.current_stream(self.device))
        with self.streams[1] if self.streams is not None else nullcontext():
            for key, value in parts.items():
                if host[key] is not value:
                    host[key].copy_(value, non_blocking=True)
                if self.streams is not None:
                    value.record_stream(self.streams[1])

    def finish(self) -> None:
        """Lets the device's computation, and so the next step, wait for the copies back."""
        if self.streams is not None:
            torch.accelerator.current_stream(self.device).wait_stream(self.streams[1])


def to_host(value: Tensor) -> Tensor:
    """Returns a tensor, which may be sharded, in CPU memory, pinned if it was elsewhere."""
    local = _part(value)
    if local.device.type in ("cpu", "meta"):
        return value
    host = value.to("cpu")
    if host is local or not hasattr(host, "_local_tensor"):
        return host.pin_memory()
    host._local_tensor = host._local_tensor.pin_memory()  # type: ignore[attr-defined]
    return host


def _part(value: Tensor) -> Tensor:
    to_local = getattr(value, "to_local", None)
    return value if to_local is None else to_local()
