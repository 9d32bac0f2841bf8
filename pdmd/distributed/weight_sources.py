"""Weight sources: where the weights of a network on the meta device are read from.

A network that is to be sharded is built as an *outline*: its parameters are on the meta device,
without memory, and each module states the source of each of its parameters. Copies of an outline
cost nothing and keep the sources. Once the outline is wrapped and sharded,
:func:`~pdmd.distributed.materialization.materialize` allocates this rank's shards and reads each
from its source: a file, a tensor in memory, another sharded parameter, or random numbers. So no
rank holds a network whole, whatever its networks start from.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

__all__ = [
    "FileWeight",
    "MemoryWeight",
    "PlacedWeight",
    "Region",
    "UniformDraws",
    "WeightSource",
    "ZeroWeight",
    "attach_sources",
    "copy_weights",
    "gathered",
    "hollow",
    "is_outline",
    "outline",
    "sources_of",
    "whole",
]

N = TypeVar("N", bound=nn.Module)
Region: TypeAlias = tuple[slice, ...]
"""The part of a tensor between two indices of each dimension."""
ATTRIBUTE = "_weight_sources"


class WeightSource(ABC):
    """Where one weight is read from. A deep copy of a source is the source itself."""

    @abstractmethod
    def read(self, region: Region) -> Tensor:
        """Reads a part of the weight.

        On several ranks, all read the same weights in the same order, each its own part.

        Args:
            region: The part, of the weight in the order of the plain network.

        Returns:
            A tensor of the part's shape. It may share memory with the source.
        """

    def __deepcopy__(self, memo: dict[int, Any]) -> WeightSource:
        return self


class MemoryWeight(WeightSource):
    """A weight in memory.

    Args:
        value: The whole weight.
    """

    def __init__(self, value: Tensor) -> None:
        self.value = value.detach()

    def read(self, region: Region) -> Tensor:
        return self.value[region]


class FileWeight(WeightSource):
    """A weight in a safetensors file, of which only the parts that are read are loaded.

    Args:
        part: Reads a part of it from the file, in the file's dtype.
        dtype: The dtype in which it is kept; values in the file are cast while they are read.
    """

    def __init__(self, part: Callable[[Region], Tensor], dtype: torch.dtype) -> None:
        self.part, self.dtype = part, dtype

    def read(self, region: Region) -> Tensor:
        return self.part(region).to(self.dtype)


class PlacedWeight(WeightSource):
    """A parameter of a placed network, which all ranks read together.

    A parameter with the same layout is copied shard by shard. Otherwise this one tensor is
    gathered.

    Args:
        parameter: The parameter.
        dim: The dimension along which it is permuted.
        order: The indices that restore its plain order; ``None`` if it is not permuted.
    """

    def __init__(self, parameter: Tensor, dim: int = 0, order: Tensor | None = None) -> None:
        self.parameter, self.dim, self.order = parameter.detach(), dim, order

    def read(self, region: Region) -> Tensor:
        value = gathered(self.parameter)
        if self.order is not None:
            value = value.index_select(self.dim, self.order.to(value.device))
        return value[region]

    def shard_like(self, target: Tensor, order: Tensor | None) -> Tensor | None:
        """Returns this rank's shard if a parameter has the same layout, else ``None``.

        Args:
            target: The parameter.
            order: The indices that restore its plain order; ``None`` if it is not permuted.
        """
        own, same = self.parameter, self.order is None and order is None
        if self.order is not None and order is not None:
            same = torch.equal(self.order, order)
        if not same or own.shape != target.shape:
            return None
        if not (isinstance(own, DTensor) and isinstance(target, DTensor)):
            return None
        if own.device_mesh != target.device_mesh or own.placements != target.placements:
            return None
        return own.to_local()


class ZeroWeight(WeightSource):
    """A weight of zeros."""

    def read(self, region: Region) -> Tensor:
        return torch.zeros([part.stop - part.start for part in region])


class UniformDraws:
    """Uniform random tensors, drawn one after the other from one seed.

    Each can be drawn again, with the same bits on any number of ranks, and one of them is in
    memory at a time.

    Args:
        seed: The seed.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._states = [self._generator.get_state()]
        self._forms: list[tuple[tuple[int, ...], float]] = []

    def add(self, shape: Sequence[int], bound: float) -> WeightSource:
        """Adds the next tensor, uniform in :math:`[-b, b]`.

        Args:
            shape: Its shape.
            bound: The bound :math:`b`.

        Returns:
            The source of its values.
        """
        self._forms.append((tuple(shape), bound))
        return _UniformWeight(self, len(self._forms) - 1)

    def draw(self, index: int) -> Tensor:
        """Draws the tensor that was added as number ``index``, from 0; float32, on the CPU."""
        for i in range(min(index, len(self._states) - 1), index + 1):
            self._generator.set_state(self._states[i])
            shape, bound = self._forms[i]
            value = torch.empty(shape).uniform_(-bound, bound, generator=self._generator)
            if i + 1 == len(self._states):
                self._states.append(self._generator.get_state())
        return value  # pyright: ignore[reportPossiblyUnboundVariable]

    def __deepcopy__(self, memo: dict[int, Any]) -> UniformDraws:
        return self


class _UniformWeight(WeightSource):
    def __init__(self, draws: UniformDraws, index: int) -> None:
        self.draws, self.index = draws, index

    def read(self, region: Region) -> Tensor:
        return self.draws.draw(self.index)[region]


def attach_sources(module: nn.Module, sources: Mapping[str, WeightSource]) -> None:
    """States the sources of a module's own parameters and buffers, by their names in it."""
    if sources:
        module.__dict__[ATTRIBUTE] = {**sources_of(module), **sources}


def sources_of(module: nn.Module) -> dict[str, WeightSource]:
    """Returns the sources of a module's own parameters and buffers, by their names in it."""
    return module.__dict__.get(ATTRIBUTE, {})


def is_outline(network: nn.Module) -> bool:
    """Returns whether a network has parameters, and all of them are on the meta device."""
    parameters = list(network.parameters())
    return bool(parameters) and all(parameter.is_meta for parameter in parameters)


def outline(network: N) -> N:
    """Returns a copy of a network on the meta device, whose weights are read from the network's.

    Args:
        network: The network, in memory or an outline itself. It is not changed, and not copied:
            the outline reads from its tensors. Buffers, which are small, are copied.

    Raises:
        ValueError: If it is sharded.
    """
    if any(isinstance(p, DTensor) for p in network.parameters()):
        raise ValueError(
            f"the {type(network).__name__} is sharded already, as a student is that several ranks "
            "distilled; save it, and load it by Student.load to distill it again"
        )
    memo: dict[int, Any] = {id(p): _meta(p) for p in network.parameters() if not p.is_meta}
    copied = copy.deepcopy(network, memo)
    for own, other in zip(network.modules(), copied.modules(), strict=True):
        attach_sources(other, _sources(own))
    return copied


def hollow(network: nn.Module) -> None:
    """Turns a network in memory into an outline of itself, in place.

    Its tensors are freed one by one as they are read.

    Args:
        network: The network.
    """
    metas: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
    for module in network.modules():
        sources = _sources(module)
        for name in sources:
            old = module._parameters[name]
            assert old is not None
            _, module._parameters[name] = metas.setdefault(id(old), (old, _meta(old)))
        attach_sources(module, sources)


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copies the weights of a network into another of the same structure.

    Args:
        source: The network; if it is an outline, only the sources of its weights are copied.
        target: The other one, an outline if the first is one.
    """
    if not is_outline(target):
        target.load_state_dict(source.state_dict())
        return
    for own, other in zip(source.modules(), target.modules(), strict=True):
        attach_sources(other, {**_sources(own), **sources_of(own)})


def gathered(value: Tensor) -> Tensor:
    """Returns all of a tensor that may be sharded, where its shards are; all ranks take part.

    Shards in CPU memory are gathered on the device of their mesh: its ranks may have no connection
    between CPUs.
    """
    if not isinstance(value, DTensor):
        return value
    shards = cast("DTensor", value.to(value.device_mesh.device_type))
    return shards.full_tensor().to(value.device)


def whole(shape: Sequence[int]) -> Region:
    """Returns the region of a whole tensor."""
    return tuple(slice(0, n) for n in shape)


def _sources(module: nn.Module) -> dict[str, WeightSource]:
    return {
        name: MemoryWeight(p)
        for name, p in module._parameters.items()
        if p is not None and not p.is_meta
    }


def _meta(parameter: nn.Parameter) -> nn.Parameter:
    value = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
    return nn.Parameter(value, requires_grad=parameter.requires_grad)
