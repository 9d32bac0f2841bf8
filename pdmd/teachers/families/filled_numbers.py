"""Numbers filled in on the device, where a network's code would copy them from memory and wait."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

__all__ = ["FilledNumbers"]


class FilledNumbers(TorchFunctionMode):
    """Fills numbers in on the device.

    Networks of diffusers call ``torch.as_tensor(length, device=...)`` (Qwen-Image, with a mask) or
    ``torch.tensor([0] * batch)`` (Chroma) or ``torch.tensor([[0] * tokens + [1] * more] * batch)``
    (Qwen-Image-Edit), which copy from memory and synchronize.

    Args:
        device: Where lists of one repeated number, or of zeros and ones, are filled in.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.as_tensor and isinstance(args[0], int):
            return torch.full((), args[0], **kwargs)
        if func is torch.tensor and _repeats(args[0]):
            return torch.full((len(args[0]),), args[0][0], **{"device": self.device, **kwargs})
        if func is torch.tensor and _steps(args[0]):
            row = args[0][0]
            places = torch.arange(len(row), device=kwargs.get("device", self.device))
            step = (places >= row.count(0)).to(kwargs.get("dtype", torch.int64))
            return step.expand(len(args[0]), -1)
        return func(*args, **kwargs)


def _repeats(values: Any) -> bool:
    return isinstance(values, list) and len({*map(repr, values)}) == 1 and type(values[0]) is int


def _steps(values: Any) -> bool:
    """Returns whether these are equal rows of zeros followed by ones."""
    if not (isinstance(values, list) and values and isinstance(values[0], list)):
        return False
    row = values[0]
    zeros = row.count(0)
    return row == [0] * zeros + [1] * (len(row) - zeros) and all(r == row for r in values)
