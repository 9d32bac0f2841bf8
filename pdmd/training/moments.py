"""Moments: how an Adam optimizer stores its running averages of gradients.

In 8 bits, a moment is a code for each value, in the dynamic data type of the reference, and a
float32 scale for each block of at most 256 values of a row. Blocks do not cross rows, so moments
of sharded parameters are sharded by row as the parameters are, and a checkpoint of them is read
exactly by any number of ranks. Small tensors, vectors, and rows that cannot be divided stay in
float32.

References:
    Dettmers et al., 8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861, Section 2.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, zeros

from pdmd.arguments import checked
from pdmd.extras import require

__all__ = ["EightBitMoments", "Float32Moments", "MomentFormat"]

SMALLEST, LARGEST_BLOCK, SMALLEST_BLOCK = 4096, 256, 32


class MomentFormat(ABC):
    """Stores a moment of a parameter as named tensors."""

    @abstractmethod
    def zeros(self, parameter: Tensor, name: str) -> dict[str, Tensor]:
        """Returns a moment of zeros.

        Args:
            parameter: The parameter, which may be sharded; the moment is sharded likewise.
            name: The moment, ``exp_avg`` or ``exp_avg_sq``.

        Returns:
            The tensors by name, which start with the moment's.
        """

    @abstractmethod
    def read(self, state: dict[str, Tensor], name: str) -> Tensor:
        """Returns a moment in float32, given this rank's part of its tensors; may be a view."""

    @abstractmethod
    def write(self, state: dict[str, Tensor], name: str, moment: Tensor, skip: Tensor) -> None:
        """Stores a moment in its tensors.

        Args:
            state: This rank's part of the tensors.
            name: The moment.
            moment: Its values, which may be those of :meth:`read`.
            skip: Whether to leave the tensors as they are, a scalar on their device.
        """


class Float32Moments(MomentFormat):
    """Moments in float32."""

    def zeros(self, parameter: Tensor, name: str) -> dict[str, Tensor]:
        return {name: torch.zeros_like(parameter, requires_grad=False)}

    def read(self, state: dict[str, Tensor], name: str) -> Tensor:
        return state[name]

    def write(self, state: dict[str, Tensor], name: str, moment: Tensor, skip: Tensor) -> None:
        """Does nothing: the moment is updated in place."""


@checked
class EightBitMoments(MomentFormat):
    """Moments in 8 bits, by the quantisation of torchao.

    Raises:
        MissingExtra: If torchao is not installed.
    """

    def __init__(self) -> None:
        require("quantized", "torchao", alternative="use train.adam_bits = 32")

    def zeros(self, parameter: Tensor, name: str) -> dict[str, Tensor]:
        block = _block(parameter)
        if block is None:
            return Float32Moments().zeros(parameter, name)
        rows = parameter.shape[0]
        shape = (rows, parameter.numel() // rows // block)
        codes = torch.zeros_like(parameter, dtype=torch.uint8, requires_grad=False)
        if isinstance(parameter, DTensor):
            mesh, placements = parameter.device_mesh, parameter.placements
            scale: Tensor = zeros(*shape, device_mesh=mesh, placements=placements)
        else:
            scale = torch.zeros(shape, device=parameter.device)
        return {f"{name}.codes": codes, f"{name}.scale": scale}

    def read(self, state: dict[str, Tensor], name: str) -> Tensor:
        if name in state:
            return state[name]
        codes, scale = state[f"{name}.codes"], state[f"{name}.scale"]
        if not codes.numel():
            return torch.zeros(codes.shape, device=codes.device)
        decode = _functions(codes.is_cuda)[0]
        return decode(codes, _values(name, codes.device), scale.flatten())

    def write(self, state: dict[str, Tensor], name: str, moment: Tensor, skip: Tensor) -> None:
        if name in state or not moment.numel():
            return
        codes, scale = state[f"{name}.codes"], state[f"{name}.scale"]
        rows = moment.view(scale.numel(), -1)
        encode = _functions(codes.is_cuda)[1]
        new, largest = encode(rows, _values(name, moment.device))
        codes.copy_(torch.where(skip, codes, new.view_as(codes)))
        scale.copy_(torch.where(skip, scale, largest.view_as(scale)))


def _block(parameter: Tensor) -> int | None:
    """Returns the values of a block, or ``None`` if the parameter's moments stay in float32."""
    if parameter.ndim < 2 or parameter.numel() < SMALLEST:
        return None
    row = parameter.numel() // parameter.shape[0]
    block = next(n for n in range(min(row, LARGEST_BLOCK), 0, -1) if row % n == 0)
    return block if block >= SMALLEST_BLOCK else None


@cache
def _functions(
    compiled: bool,
) -> tuple[Callable[..., Tensor], Callable[..., Any]]:
    """Returns what decodes and encodes; compiled, one kernel each in place of some thirty."""
    from torchao.optim.quant_utils import (  # pyright: ignore[reportMissingImports]
        dequant_with_qmap,
        quantize_8bit_with_qmap,
        scale_tensor,
    )

    def encode(rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        scaled, largest = scale_tensor(rows, rows.shape[1])
        return quantize_8bit_with_qmap(scaled, values), largest

    if not compiled:
        return dequant_with_qmap, encode
    return torch.compile(dequant_with_qmap, dynamic=True), torch.compile(encode, dynamic=True)


@cache
def _values(name: str, device: torch.device) -> Tensor:
    """Returns the value of every code; a second moment has no sign."""
    from torchao.optim.quant_utils import (  # pyright: ignore[reportMissingImports]
        create_dynamic_map,
    )

    return torch.tensor(create_dynamic_map(signed=name == "exp_avg"), device=device)
