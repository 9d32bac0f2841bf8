"""Materialization: allocates a rank's shards of an outline, and reads them from their sources."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from pdmd.distributed.plans import plain_path
from pdmd.distributed.styles import packed_order
from pdmd.distributed.weight_sources import (
    ATTRIBUTE,
    MemoryWeight,
    PlacedWeight,
    Region,
    WeightSource,
    attach_sources,
    sources_of,
    whole,
)

__all__ = ["check_sources", "materialize", "missing_sources", "refer", "region_of"]


@torch.no_grad()
def materialize(
    network: nn.Module, device: torch.device, *, shards: torch.device | None = None
) -> None:
    """Allocates this rank's shards of an outline and reads their values, tensor by tensor.

    Args:
        network: The outline, wrapped and sharded, changed in place. Parameters that have values
            keep them.
        device: The device of its computation, where buffers and whole parameters are.
        shards: Where sharded parameters are allocated; ``device`` by default.

    Raises:
        ValueError: If a parameter has no source.
    """
    check_sources(network)

    def allocated(tensor: Tensor) -> Tensor:
        place = (shards or device) if isinstance(tensor, DTensor) else device
        return torch.empty_like(tensor, device=place) if tensor.is_meta else tensor.to(place)

    network._apply(allocated)
    read: set[int] = set()
    for module in network.modules():
        sources = module.__dict__.pop(ATTRIBUTE, {})
        while sources:
            name = next(iter(sources))
            source = sources.pop(name)
            target = _tensor(module, name)
            if target is not None and id(target) not in read:
                read.add(id(target))  # tied parameters are read once
                _fill(target, source, _packing(module, name))


def check_sources(network: nn.Module) -> None:
    """Checks that every parameter and buffer on the meta device has a source.

    Raises:
        ValueError: If one has none.
    """
    missing = missing_sources(network)
    if missing:
        raise ValueError(
            f"the {type(network).__name__} was built on the meta device and has no values for "
            f"{missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else "") + "; load "
            "it from a pipeline's folder, or build it with weights"
        )


def missing_sources(network: nn.Module) -> list[str]:
    """Returns the parameters and buffers on the meta device that have no source."""
    sourced: set[int] = set()
    tensors: dict[int, str] = {}
    for path, module in network.named_modules():
        for name, value in (*module._parameters.items(), *module._buffers.items()):
            if value is None or not value.is_meta:
                continue
            tensors.setdefault(id(value), plain_path(f"{path}.{name}".strip(".")))
            if name in sources_of(module):
                sourced.add(id(value))
    return [path for key, path in tensors.items() if key not in sourced]


def refer(outline: nn.Module, placed: nn.Module) -> None:
    """Makes an outline read its weights from a placed network of the same structure.

    Args:
        outline: The outline, changed in place. Its buffers get the placed network's values.
        placed: The placed network, wrapped in any way.
    """
    found: dict[str, tuple[nn.Module, str]] = {}
    for path, module in placed.named_modules():
        for name in (*module._parameters, *module._buffers):
            found[plain_path(f"{path}.{name}".strip("."))] = (module, name)
    for path, module in outline.named_modules():
        sources: dict[str, WeightSource] = {}
        for name, value in module._parameters.items():
            if value is None:
                continue
            owner, own = found[plain_path(f"{path}.{name}".strip("."))]
            dim, order = _packing(owner, own)
            plain = None if order is None else order.argsort()
            sources[name] = PlacedWeight(cast("Tensor", owner._parameters[own]), dim, plain)
        attach_sources(module, sources)
        for name, value in module._buffers.items():
            if value is not None:
                owner, own = found[plain_path(f"{path}.{name}".strip("."))]
                value.copy_(cast("Tensor", owner._buffers[own]))


def region_of(target: Tensor) -> Region:
    """Returns the region of a tensor that this rank holds; all of a plain tensor."""
    if not isinstance(target, DTensor):
        return whole(target.shape)
    shape, offset = compute_local_shape_and_global_offset(
        target.shape, target.device_mesh, target.placements
    )
    local = tuple(target.to_local().shape)
    assert tuple(shape) == local, f"expected a shard of shape {tuple(shape)}, got {local}"
    return tuple(slice(a, a + n) for a, n in zip(offset, shape, strict=True))


def _tensor(module: nn.Module, name: str) -> Tensor | None:
    value = module._parameters.get(name)
    return module._buffers.get(name) if value is None else value


def _packing(module: nn.Module, name: str) -> tuple[int, Tensor | None]:
    """Returns the dimension along which a parameter is permuted, and the source of each index."""
    parts: dict[str, Any] = module.__dict__.get("tensor_parts", {})
    if name not in parts:
        return 0, None
    dim, sizes = parts[name]
    return dim, packed_order(sizes, cast("Any", module.tensor_ranks).size)


def _fill(target: Tensor, source: WeightSource, packing: tuple[int, Tensor | None]) -> None:
    dim, order = packing
    local = target.to_local() if isinstance(target, DTensor) else target
    if isinstance(source, PlacedWeight):
        shard = source.shard_like(target, None if order is None else order.argsort())
        if shard is not None:
            local.copy_(shard)
            return
        source = MemoryWeight(source.read(whole(target.shape)))  # once, on all ranks
    region = region_of(target)
    if order is None:
        local.copy_(source.read(region))
        return
    at = 0
    for run in _runs(order[region[dim]]):
        size = run.stop - run.start
        part = source.read((*region[:dim], run, *region[dim + 1 :]))
        local.narrow(dim, at, size).copy_(part)
        at += size


def _runs(indices: Tensor) -> list[slice]:
    """Returns the runs of consecutive numbers in a list of indices."""
    cuts = (indices.diff() != 1).nonzero().flatten() + 1
    return [
        slice(int(run[0]), int(run[-1]) + 1)
        for run in indices.tensor_split(cuts.tolist())
        if len(run)
    ]
