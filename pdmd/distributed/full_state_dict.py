"""States in the order of the plain network, whatever order tensor parallelism splits them in.

A rank's slice of a packed weight has some of every part, so a split weight is a permutation of the
plain one. Checkpoints hold the plain order, and are read on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from pdmd.distributed import permutations
from pdmd.distributed.state_layout import parameter_names

__all__ = ["permuted_moments", "full_moments", "full_tensors", "load_permuted"]


def full_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Returns a placed network's tensors by name, those out of order gathered and in order."""
    state = {name: value.detach() for name, value in network.state_dict().items()}
    for name, permuted in permutations(network).items():
        state[name] = _plain(state[name], *permuted)
    return state


def load_permuted(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Puts plain tensors where a placed network holds them out of order; no others.

    Args:
        network: The network.
        tensors: What :func:`full_tensors` returned, whole.
    """
    permuted = permutations(network)
    own = network.state_dict()
    for name, value in tensors.items():
        if name in permuted:
            own[name].copy_(_permuted(value, own[name], *permuted[name]))


def full_moments(
    network: nn.Module, moments: dict[str, dict[str, Tensor]]
) -> dict[str, dict[str, Tensor]]:
    """Returns the state of every parameter's optimizer, in the plain order.

    Args:
        network: The placed network.
        moments: The state by parameter and name, as the optimizers hold it; changed in place.
    """
    permuted = permutations(network)
    for name in sorted(permuted.keys() & moments.keys()):  # in one order on all ranks
        moments[name] = {
            key: _plain(value, *permuted[name]) if value.ndim else value
            for key, value in moments[name].items()
        }
    return moments


def permuted_moments(
    network: nn.Module, moments: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, dict[str, Tensor]]:
    """Returns what :func:`full_moments` returned, as the optimizers of a network hold it.

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
    full = value.full_tensor() if isinstance(value, DTensor) else value
    return full.index_select(dim, order.to(full.device))


def _permuted(full: Tensor, like: Tensor, dim: int, order: Tensor) -> Tensor:
    value = full.index_select(dim, order.argsort().to(full.device))
    if isinstance(like, DTensor):
        return distribute_tensor(value, like.device_mesh, like.placements)
    return value
