r"""Tensor parallelism: a network whose weights are split over ranks.

Every rank has a slice of each large weight and computes its own features and heads, in the styles
of :mod:`pdmd.distributed.styles`. All ranks of a group must have the same inputs. Then

- outputs, the gradients of inputs and the gradients of replicated parameters are whole on every
  rank;
- every parameter is a distributed tensor over the mesh, so that gradient clipping and fused
  optimizers see one kind of tensor.

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

    Weights are sliced locally, without communication, so they must be equal on all ranks; they may
    also be on the meta device. Layers that no plan names are replicated.

    Args:
        network: The network with whole parameters, changed in place.
        mesh: A one-dimensional mesh named ``tp``.

    Raises:
        ValueError: If the network cannot be split (see :func:`~pdmd.distributed.check`), or the
            mesh has another name; the network is unchanged then.
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
    """Returns the permutations that restore the plain order of packed weights.

    A rank's slice of a packed weight contains a slice of every part, so the concatenated slices
    are not in the order of the plain weight. With ``dim, index = permutations(network)[name]``,

    - ``parameter.full_tensor().index_select(dim, index)`` is the plain weight, and
    - ``plain.index_select(dim, index.argsort())`` is the one that is split.

    Plain tensors in checkpoints and exports can be loaded on any number of ranks.

    Args:
        network: A tensor parallel network, wrapped for activation checkpointing or not.

    Returns:
        The dimension and the indices into it, int64, by name of each permuted parameter.
    """
    found = {}
    for path, module in network.named_modules():
        parts = module.__dict__.get("tensor_parts", {})
        for name, (dim, sizes) in parts.items():
            order = packed_order(sizes, module.tensor_ranks.size)  # type: ignore[union-attr]
            found[plain_path(f"{path}.{name}".strip("."))] = (dim, order.argsort())
    return found
