r"""Differentiable collectives, to any order.

A parallel network has two kinds of tensors. A *whole* tensor is the same on every rank, and so is
its gradient. A *partial* tensor differs between ranks: a shard, or a summand of a whole tensor.
Each function below maps between the kinds, and its backward is another of them:

============ ============================ ============================ ==============
function     forward                      in to out                    backward
============ ============================ ============================ ==============
``enter``    identity                     whole to partial             ``reduce``
``reduce``   sum over ranks               partial to whole             ``enter``
``gather``   concatenation over ranks     partial to whole             own slice
``exchange`` all-to-all of two dimensions partial to partial           ``exchange``
============ ============================ ============================ ==============

References:
    Shoeybi et al., Megatron-LM, arXiv:1909.08053, Section 3 (``enter`` and ``reduce`` are its f
    and g); Jacobs et al., DeepSpeed Ulysses, arXiv:2309.14509 (``exchange``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.distributed.device_mesh import DeviceMesh

# The operators under torch's functional collectives, whose own names have changed.
_collectives = torch.ops._c10d_functional

__all__ = ["Ranks", "enter", "exchange", "gather", "local_part", "reduce", "scale_gradient"]


@dataclass(frozen=True)
class Ranks:
    """The ranks of one parallel axis, as seen from one of them.

    Attributes:
        group: Name of the process group.
        size: Number of ranks.
        rank: Index of this rank.
    """

    group: str
    size: int
    rank: int

    @classmethod
    def of(cls, mesh: DeviceMesh, name: str | None = None) -> Ranks:
        """Returns the ranks of a one-dimensional mesh.

        Args:
            mesh: The mesh.
            name: Required name of its dimension.

        Raises:
            ValueError: If the mesh has several dimensions or another name.
        """
        names = mesh.mesh_dim_names
        if mesh.ndim != 1 or (name is not None and names != (name,)):
            required = "one dimension" if name is None else f"the one dimension {name!r}"
            raise ValueError(
                f"expected a mesh with {required}, got {names or mesh.ndim}; index the whole mesh "
                "by name, as in mesh['tp']"
            )
        return cls(mesh.get_group().group_name, mesh.size(), mesh.get_local_rank())


def enter(x: Tensor, ranks: Ranks) -> Tensor:
    """Uses a whole tensor differently on each rank: its gradients are summed over ranks."""
    return _Enter.apply(x, ranks)


def reduce(x: Tensor, ranks: Ranks) -> Tensor:
    """Sums partial tensors over ranks; every summand receives the gradient of the sum."""
    return _Reduce.apply(x, ranks)


def gather(x: Tensor, ranks: Ranks, dim: int) -> Tensor:
    """Concatenates the ranks' slices along ``dim`` into a whole tensor."""
    return _Gather.apply(x, ranks, dim)


def exchange(x: Tensor, ranks: Ranks, scatter: int, join: int) -> Tensor:
    """All-to-all: splits along ``scatter``, sends a slice to each rank, concatenates on ``join``.

    Args:
        x: A tensor whose length along ``scatter`` is divisible by the number of ranks.
        ranks: The ranks.
        scatter: The dimension to split.
        join: The dimension to concatenate.
    """
    return _Exchange.apply(x, ranks, scatter % x.ndim, join % x.ndim)


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Returns ``x``, with its gradient multiplied by ``factor``."""
    return _ScaleGradient.apply(x, factor)


def _wait(x: Tensor) -> Tensor:
    return _collectives.wait_tensor(x)


class _Enter(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _Reduce.apply(grads[0], ctx.ranks), None


class _Reduce(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return _wait(_collectives.all_reduce(x.contiguous(), "sum", ranks.group))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _Enter.apply(grads[0], ctx.ranks), None


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks, dim: int) -> Tensor:
        ctx.ranks, ctx.dim = ranks, dim
        first = x.movedim(dim, 0).contiguous()
        joined = _collectives.all_gather_into_tensor(first, ranks.size, ranks.group)
        return _wait(joined).movedim(0, dim).contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _Shard.apply(grads[0], ctx.ranks, ctx.dim), None, None


class _Shard(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks, dim: int) -> Tensor:
        ctx.ranks, ctx.dim = ranks, dim
        length = x.shape[dim] // ranks.size
        # A clone, because a view would keep the whole tensor in memory.
        return x.narrow(dim, ranks.rank * length, length).clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _Gather.apply(grads[0], ctx.ranks, ctx.dim), None, None


class _Exchange(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks, scatter: int, join: int) -> Tensor:
        ctx.ranks, ctx.scatter, ctx.join = ranks, scatter, join
        slices = x.unflatten(scatter, (ranks.size, -1)).movedim(scatter, 0).contiguous()
        one_each = [1] * ranks.size
        received = _collectives.all_to_all_single(slices, one_each, one_each, ranks.group)
        return _wait(received).movedim(0, join).flatten(join, join + 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _Exchange.apply(grads[0], ctx.ranks, ctx.join, ctx.scatter), None, None, None


class _ScaleGradient(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] * ctx.factor, None


def local_part(value: Tensor) -> Tensor:
    """Returns this rank's shard of a tensor; a plain tensor is returned as is."""
    to_local = getattr(value, "to_local", None)
    return value if to_local is None else to_local()
