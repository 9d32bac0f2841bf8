"""Compares a network on several ranks with the same network in one process."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from pdmd.distributed import (
    context_parallelize,
    permutations,
    tensor_parallelize,
    units_of,
)
from pdmd.distributed.plans import plain_path
from tests.distributed.families import case

__all__ = ["distribute", "errors", "full", "make_mesh", "relative"]


def make_mesh(data=1, context=1, tensor=1):
    return init_device_mesh("cpu", (data, context, tensor), mesh_dim_names=("dp", "cp", "tp"))


def checkpoint_every_block(network: nn.Module) -> None:
    for path, unit in units_of(network):
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, checkpoint_wrapper(unit))


def distribute(network: nn.Module, mesh, checkpoint=False) -> None:
    """Applies the parallelisms in the documented order."""
    if mesh["tp"].size() > 1:
        tensor_parallelize(network, mesh["tp"])
    if mesh["cp"].size() > 1:
        context_parallelize(network, mesh["cp"])
    if checkpoint:
        checkpoint_every_block(network)
    if mesh["dp"].size() > 1:
        shards = mesh["dp", "cp"]._flatten("dp_cp") if mesh["cp"].size() > 1 else mesh["dp"]
        for _, unit in units_of(network):
            fully_shard(unit, mesh=shards)
        fully_shard(network, mesh=shards)


def full(name: str, tensor: Tensor, permuted) -> Tensor:
    """Returns a parameter, or a tensor of its shape, in the order of one process."""
    tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    dim, index = permuted.get(name, (0, None))
    return tensor.detach().clone() if index is None else tensor.detach().index_select(dim, index)


def relative(a: Tensor, b: Tensor) -> float:
    scale = (
        b.abs().max().item()
    )  # zero for the text queries of the last block, which have no gradient
    return (a - b).abs().max().item() / (scale or 1.0)


def errors(
    families: Iterable[str],
    kinds: Iterable[tuple[int, int, int, bool]],
    step: bool = False,
) -> dict[tuple, dict[str, float]]:
    """Measures every family under every (data, context, tensor, checkpointed) kind.

    Returns:
        For every kind and family, the relative error of the output, the loss, each parameter's
        gradient (``parameter NAME``) and each input's (``input NAME``); with ``step``, of the
        clipped norm and of each parameter after a step of fused AdamW.
    """
    found = {}
    for family in families:
        alone, x = case(family, batch=4)
        x = x.requires_grad_()
        target = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        y = alone(x)
        loss = (y - target).square().mean()
        loss.backward()
        for data, context, tensor, checkpoint in kinds:
            mesh = make_mesh(data, context, tensor)
            one = found[(data, context, tensor, checkpoint), family] = {}
            split, own = case(family, batch=4)
            _measure(one, alone, split, mesh, checkpoint, (x, own, y, loss, target), step)
    return found


def _measure(one, alone, split, mesh, checkpoint, tensors, step):
    x, own, y, loss, target = tensors
    distribute(split.network, mesh, checkpoint)
    data, context = mesh["dp"].size(), mesh["cp"].size()
    rows = torch.arange(4).chunk(data)[mesh["dp"].get_local_rank()]
    split = split.rows(rows)
    own = own[rows].requires_grad_()
    value = split(own)
    part = (value - target[rows]).square().mean()
    (part * (context if data > 1 else 1)).backward()
    one["output"] = relative(value, y[rows])
    one["loss"] = relative(part, (y - target)[rows].square().mean())
    scale = len(x) / len(rows) * (context if data > 1 else 1)
    one["input x"] = relative(own.grad / scale, x.grad[rows])
    for name, argument in split.arguments.items():
        if isinstance(argument, Tensor) and argument.requires_grad:
            expected = alone.arguments[name].grad[rows]
            one[f"input {name}"] = relative(argument.grad / scale, expected)
    permuted = permutations(split.network)
    expected = dict(alone.network.named_parameters())
    for name, parameter in split.network.named_parameters():
        name = plain_path(name)
        assert (parameter.grad is None) == (expected[name].grad is None), name
        if parameter.grad is None:
            continue
        gradient = full(name, parameter.grad, permuted)
        if context > 1 and data == 1:  # partial: not summed over ranks yet
            torch.distributed.all_reduce(gradient, group=mesh["cp"].get_group())
        one[f"parameter {name}"] = relative(gradient, expected[name].grad)
    assert {plain_path(n) for n, _ in split.network.named_parameters()} == set(expected)
    if step:
        _step(one, alone.network, split.network, permuted)


def _step(one, alone, split, permuted):
    # A large epsilon, as Adam's step would have a random sign where a gradient is rounding error.
    gradients = {name: p.grad for name, p in alone.named_parameters()}
    alone = copy.deepcopy(alone)
    for name, parameter in alone.named_parameters():
        parameter.grad = None if gradients[name] is None else gradients[name].clone()
    norms = []
    for network in (alone, split):
        norms.append(nn.utils.clip_grad_norm_(network.parameters(), 1e-2))
        torch.optim.AdamW(network.parameters(), lr=1.0, eps=1e-2, fused=True).step()
    norm = norms[1].full_tensor() if isinstance(norms[1], DTensor) else norms[1]
    one["norm"] = relative(norm, norms[0])
    after = dict(alone.named_parameters())
    for name, parameter in split.named_parameters():
        name = plain_path(name)
        one[f"step {name}"] = relative(full(name, parameter, permuted), after[name])
