r"""Tensor parallelism: a network whose weights are split over ranks.

Every rank holds a part of each large weight and computes with its own features and heads;
:mod:`pdmd.distributed.styles` says how. All ranks of a group must be given the same inputs. Then

- outputs, the gradients of inputs and the gradients of replicated parameters are whole on every
  rank;
- every parameter is a distributed tensor over the mesh, so that gradients are clipped and fused
  optimizers step over one kind of tensor.

The order of wrapping is tensor, context, activation checkpointing, ``fully_shard``.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from pdmd.distributed.checks import check
from pdmd.distributed.collectives import Ranks
from pdmd.distributed.parameter_views import replicate
from pdmd.distributed.plans import matching, plain_path, plans_of
from pdmd.distributed.styles import packed_order

__all__ = ["permutations", "tensor_parallelize"]


def tensor_parallelize(network: nn.Module, mesh: DeviceMesh) -> None:
    """Splits a network's weights over ranks, by the plans that it states.

    Weights are sliced where they are, without communication, so every rank must hold the same;
    they may also be on the meta device. Layers that no plan names are replicated.

    Args:
        network: The network with whole parameters, changed in place.
        mesh: A one-dimensional mesh named ``tp``.

    Raises:
        ValueError: If the network cannot be split (see :func:`~pdmd.distributed.check`), or the
            mesh is another; nothing has changed then.
    """
    ranks = Ranks.of(mesh, "tp")
    check(network, tensor=ranks.size)
    for path, plan in plans_of(network).items():
        module = network.get_submodule(path)
        assert plan.tensor is not None
        for pattern, style in plan.tensor.styles.items():
            for _, layer in matching(module, pattern):
                style.apply(layer, mesh)
        for pattern, attributes in plan.tensor.divided.items():
            for _, part in matching(module, pattern):
                for attribute in attributes:
                    setattr(part, attribute, getattr(part, attribute) // ranks.size)
    replicate(network, mesh)


def permutations(network: nn.Module) -> dict[str, tuple[int, Tensor]]:
    """Says how to undo the order in which packed weights are split.

    A rank's slice of a packed weight has some of every part, so the joined slices are not in the
    order of the plain weight. With ``dim, index = permutations(network)[name]``,

    - ``parameter.full_tensor().index_select(dim, index)`` is the plain weight, and
    - ``plain.index_select(dim, index.argsort())`` is the one that is split.

    A checkpoint or an export that holds plain tensors can be read on any number of ranks.

    Args:
        network: A tensor parallel network, wrapped for activation checkpointing or not.

    Returns:
        For each parameter out of order: the dimension, and indices into it, int64.
    """
    found = {}
    for path, module in network.named_modules():
        parts = module.__dict__.get("tensor_parts", {})
        for name, (dim, sizes) in parts.items():
            order = packed_order(sizes, module.tensor_ranks.size)  # type: ignore[union-attr]
            found[plain_path(f"{path}.{name}".strip("."))] = (dim, order.argsort())
    return found
