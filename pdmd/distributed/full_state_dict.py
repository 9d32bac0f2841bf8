"""Full states: the state of a tensor parallel network, in the order of the plain network.

A rank's slice of a packed weight contains a slice of every part, so the split weight is a
permutation of the plain one. Checkpoints store the plain order, for any number of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pdmd.distributed import permutations
from pdmd.distributed.materialization import region_of
from pdmd.distributed.state_layout import parameter_names
from pdmd.distributed.weight_sources import gathered

__all__ = ["permuted_moments", "full_moments", "full_tensors", "load_permuted"]


def full_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Returns the tensors of a placed network by name, permuted ones reordered.

    One permuted tensor at a time is whole in memory; it stays sharded as the network's is.
    """
    state = {name: value.detach() for name, value in network.state_dict().items()}
    for name, permuted in permutations(network).items():
        state[name] = _plain(state[name], *permuted)
    return state


def load_permuted(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Loads the permuted tensors of a placed network; the others were loaded in place.

    Args:
        network: The placed network.
        tensors: The result of :func:`full_tensors`, filled from a checkpoint.
    """
    permuted = permutations(network)
    own = network.state_dict()
    for name, value in tensors.items():
        if name in permuted:
            own[name].copy_(_permuted(value, own[name], *permuted[name]))


def full_moments(
    network: nn.Module, moments: dict[str, dict[str, Tensor]]
) -> dict[str, dict[str, Tensor]]:
    """Returns the optimizer state of every parameter, in the plain order.

    Args:
        network: The placed network.
        moments: The state by parameter and name, in the optimizers' order; changed in place.
    """
    permuted = permutations(network)
    for name in sorted(permuted.keys() & moments.keys()):  # in the same order on all ranks
        moments[name] = {
            key: _plain(value, *permuted[name]) if value.ndim else value
            for key, value in moments[name].items()
        }
    return moments


def permuted_moments(
    network: nn.Module, moments: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, dict[str, Tensor]]:
    """Inverts :func:`full_moments`: returns the state in the order of a network's optimizers.

    Args:
        network: The placed network.
        moments: The state by parameter and name, in the plain order.
    """
    permuted = permutations(network)
    own = {name: parameter for parameter, name in parameter_names(network).items()}
    out: dict[str, dict[str, Tensor]] = {}
    for name, state in moments.items():
        out[name] = {
            key: _permuted(value, own[name], *permuted[name])
            if name in permuted and value.ndim
            else value
            for key, value in state.items()
        }
    return out


def _plain(value: Tensor, dim: int, order: Tensor) -> Tensor:
    full = gathered(value)
    plain = full.index_select(dim, order.to(full.device))
    return _shard(plain, value) if isinstance(value, DTensor) else plain


def _permuted(full: Tensor, like: Tensor, dim: int, order: Tensor) -> Tensor:
    full = gathered(full)
    value = full.index_select(dim, order.argsort().to(full.device))
    return _shard(value, like) if isinstance(like, DTensor) else value


def _shard(whole: Tensor, like: DTensor) -> Tensor:
    """Returns this rank's shard of a tensor, as another is sharded; the rest is freed."""
    part = whole[region_of(like)].clone()
    shard = DTensor.from_local(
        part,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=whole.shape,
        stride=whole.stride(),
    )
    return shard.to(part.device)  # it was moved to the mesh's, which is not that of offloaded ones
