r"""Styles: the ways in which one layer's weights are split by tensor parallelism.

Attention and MLPs are pairs of linear maps with a function :math:`f` between that acts on each
head or feature separately. The first map is split by its outputs (:class:`Columnwise`), the second
by its inputs (:class:`Rowwise`): with :math:`W_1 = [W_1^1; \dots; W_1^n]` and :math:`W_2 =
[W_2^1, \dots, W_2^n]`,

.. math:: W_2\, f(W_1 x) = \sum_r W_2^r\, f(W_1^r x),

with one sum over ranks for the pair. Layers between the two see a rank's own features, so those
with shared statistics or weights need a style too: a norm over all heads sums its squares over
ranks (:class:`NormAcrossHeads`), and weights that all heads share receive the sum of the ranks'
gradients (:class:`PerHead`).

References:
    Shoeybi et al., Megatron-LM, arXiv:1909.08053, Section 3.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard
from torch.nn import functional

from pdmd.distributed.collectives import Ranks, enter, reduce
from pdmd.distributed.parameter_views import distribute_parameter, local, override, summed

__all__ = [
    "Columnwise",
    "NormAcrossHeads",
    "PackedColumnwise",
    "PackedRowwise",
    "PerHead",
    "Rowwise",
    "Style",
    "packed_order",
]


class Style(ABC):
    """A way to split one layer."""

    @abstractmethod
    def check(self, path: str, module: nn.Module, ranks: int) -> None:
        """Checks that a layer can be split in this style.

        Args:
            path: The layer's path, for error messages.
            module: The layer.
            ranks: The number of ranks.

        Raises:
            ValueError: If it cannot be.
        """

    @abstractmethod
    def apply(self, module: nn.Module, mesh: DeviceMesh) -> None:
        """Splits a layer in place.

        Args:
            module: The layer, with whole parameters.
            mesh: The one-dimensional mesh of the ranks.
        """

    def split_factors(
        self, layer: nn.Module, first: nn.Module, second: nn.Module, mesh: DeviceMesh
    ) -> Callable[[Tensor], Tensor]:
        r"""Splits the low-rank factors of a layer to match the split of the layer, in place.

        Args:
            layer: The split layer, to whose output :math:`B A x` is added.
            first: The module with :math:`A` as its ``weight``.
            second: The module with :math:`B` as its ``weight``.
            mesh: The ranks.

        Returns:
            The collective to apply to :math:`A x` before :math:`B`.

        Raises:
            ValueError: If the style does not support low-rank factors.
        """
        raise ValueError(
            f"{type(self).__name__} cannot split the low-rank factors of a "
            f"{type(layer).__name__} over tensor parallel ranks; leave the layer out of "
            "lora.targets, or use parallel.tp = 1"
        )


@dataclass(frozen=True)
class Columnwise(Style):
    """A linear layer from whole features to the rank's own features."""

    def check(self, path: str, module: nn.Module, ranks: int) -> None:
        _check_parts(path, _linear(path, module, self).out_features, self._parts(module), ranks)

    def apply(self, module: nn.Module, mesh: DeviceMesh) -> None:
        parts = self._parts(module)
        for name, parameter in _own(module):
            distribute_parameter(module, name, _slice(parameter, 0, parts, mesh), mesh, Shard(0))
        if len(parts) > 1:
            module.tensor_parts = {name: (0, parts) for name, _ in _own(module)}  # type: ignore[assignment]
        _override(module, _ColumnwiseLinear, mesh)

    def split_factors(
        self, layer: nn.Module, first: nn.Module, second: nn.Module, mesh: DeviceMesh
    ) -> Callable[[Tensor], Tensor]:
        _place_factor(second, 0, self._parts(layer), mesh)
        return partial(
            enter, ranks=Ranks.of(mesh)
        )  # A x is whole, and used differently on each rank

    def _parts(self, module: Any) -> tuple[int, ...]:
        return (module.out_features,)


@dataclass(frozen=True)
class PackedColumnwise(Columnwise):
    """A columnwise linear layer that packs several layers, like query, key and value.

    Attributes:
        parts: The number of output features of each layer.
    """

    parts: tuple[int, ...]

    def _parts(self, module: Any) -> tuple[int, ...]:
        return self.parts


@dataclass(frozen=True)
class Rowwise(Style):
    """A linear layer from the rank's own features to whole features."""

    def check(self, path: str, module: nn.Module, ranks: int) -> None:
        _check_parts(path, _linear(path, module, self).in_features, self._parts(module), ranks)

    def apply(self, module: nn.Module, mesh: DeviceMesh) -> None:
        parts = self._parts(module)
        for name, parameter in _own(module):
            if name == "weight":
                distribute_parameter(
                    module, name, _slice(parameter, 1, parts, mesh), mesh, Shard(1)
                )
            else:
                distribute_parameter(module, name, parameter, mesh, Replicate())
        if len(parts) > 1:
            module.tensor_parts = {"weight": (1, parts)}  # type: ignore[assignment]
        _override(module, _RowwiseLinear, mesh)

    def split_factors(
        self, layer: nn.Module, first: nn.Module, second: nn.Module, mesh: DeviceMesh
    ) -> Callable[[Tensor], Tensor]:
        _place_factor(first, 1, self._parts(layer), mesh)
        return partial(reduce, ranks=Ranks.of(mesh))  # A x is a sum over ranks

    def _parts(self, module: Any) -> tuple[int, ...]:
        return (module.in_features,)


@dataclass(frozen=True)
class PackedRowwise(Rowwise):
    """A rowwise linear layer whose input concatenates several split features.

    Attributes:
        parts: The number of input features of each part.
    """

    parts: tuple[int, ...]

    def _parts(self, module: Any) -> tuple[int, ...]:
        return self.parts


@dataclass(frozen=True)
class NormAcrossHeads(Style):
    """A root-mean-square norm over the features of all heads, which are split over ranks.

    For ``torch.nn.RMSNorm`` and similar modules: with an ``eps``, an optional ``weight``, no bias.
    """

    def check(self, path: str, module: nn.Module, ranks: int) -> None:
        shape = _normalized(module)
        if shape is None or len(shape) != 1 or getattr(module, "bias", None) is not None:
            raise ValueError(
                f"{path} is a {type(module).__name__}; NormAcrossHeads splits a "
                "root-mean-square norm over one dimension, without bias"
            )
        _check_parts(path, shape[0], tuple(shape), ranks)

    def apply(self, module: nn.Module, mesh: DeviceMesh) -> None:
        shape = _normalized(module)
        assert shape is not None
        for name, parameter in _own(module):
            distribute_parameter(module, name, _slice(parameter, 0, shape, mesh), mesh, Shard(0))
        module.whole_features = shape[0]  # type: ignore[assignment]
        _override(module, _NormAcrossRanks, mesh)


@dataclass(frozen=True)
class PerHead(Style):
    """A layer that all heads share, for example a norm over the features of one head."""

    def check(self, path: str, module: nn.Module, ranks: int) -> None:
        if not _own(module):
            raise ValueError(
                f"{path} has no parameters for heads to share; remove it from the plan"
            )

    def apply(self, module: nn.Module, mesh: DeviceMesh) -> None:
        for name, parameter in _own(module):
            distribute_parameter(module, name, parameter, mesh, Replicate())
        module.tensor_ranks = Ranks.of(mesh)  # type: ignore[assignment]
        override(module, views={name: summed for name, _ in _own(module)})


def packed_order(parts: tuple[int, ...], ranks: int) -> Tensor:
    """Returns the source index of every index of a split packed dimension.

    The order is by rank, then by part: each rank has its slice of every part.

    Args:
        parts: The length of each part.
        ranks: The number of ranks, which divides every part.

    Returns:
        Indices of the plain dimension, int64.
    """
    indices = torch.arange(sum(parts)).split(list(parts))
    return torch.cat([part.chunk(ranks)[rank] for rank in range(ranks) for part in indices])


class _ColumnwiseLinear(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(enter(input, self.tensor_ranks))  # type: ignore[misc, arg-type]


class _RowwiseLinear(nn.Module):
    weight: Tensor
    bias: Tensor | None

    def forward(self, input: Tensor) -> Tensor:
        y = reduce(functional.linear(input, self.weight), self.tensor_ranks)  # type: ignore[arg-type]
        return y if self.bias is None else y + self.bias


class _NormAcrossRanks(nn.Module):
    weight: Tensor | None
    eps: float | None
    whole_features: int
    tensor_ranks: Ranks  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        total = reduce(wide.square().sum(-1, keepdim=True), self.tensor_ranks)
        mean = enter(total, self.tensor_ranks) / self.whole_features
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        y = wide * torch.rsqrt(mean + eps)
        return (y if self.weight is None else y * self.weight).to(x.dtype)


def _place_factor(factor: nn.Module, dim: int, parts: tuple[int, ...], mesh: DeviceMesh) -> None:
    weight = factor._parameters["weight"]
    assert weight is not None
    distribute_parameter(factor, "weight", _slice(weight, dim, parts, mesh), mesh, Shard(dim))
    if len(parts) > 1:
        factor.tensor_parts = {"weight": (dim, parts)}  # type: ignore[assignment]
    factor.tensor_ranks = Ranks.of(mesh)  # type: ignore[assignment]
    override(factor, views={"weight": local})


def _override(module: nn.Module, mixin: type, mesh: DeviceMesh) -> None:
    module.tensor_ranks = Ranks.of(mesh)  # type: ignore[assignment]
    override(module, mixin, {name: local for name, _ in _own(module)})


def _own(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in module._parameters.items() if p is not None]


def _linear(path: str, module: nn.Module, style: Style) -> nn.Linear:
    if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
        raise ValueError(
            f"{path} is a {type(module).__name__}; {type(style).__name__} splits torch.nn.Linear"
        )
    return module


def _normalized(module: Any) -> tuple[int, ...] | None:
    if isinstance(module, nn.LayerNorm):
        return None
    shape = getattr(module, "normalized_shape", getattr(module, "dim", None))
    return None if shape is None or not hasattr(module, "eps") else tuple(shape)


def _check_parts(path: str, features: int, parts: tuple[int, ...], ranks: int) -> None:
    if sum(parts) != features:
        raise ValueError(
            f"{path} has {features} features, but its plan packs {parts}; correct the plan"
        )
    for part in parts:
        if part % ranks:
            raise ValueError(
                f"{path} has {part} features, which is not divisible by {ranks} tensor parallel "
                "ranks; use fewer"
            )


def _slice(parameter: Tensor, dim: int, parts: tuple[int, ...], mesh: DeviceMesh) -> Tensor:
    pieces = parameter.detach().split(list(parts), dim)
    own = [piece.chunk(mesh.size(), dim)[mesh.get_local_rank()] for piece in pieces]
    return torch.cat(own, dim).contiguous()  # a copy, so that the whole tensor is freed
