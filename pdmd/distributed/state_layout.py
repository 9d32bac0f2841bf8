"""State layouts: the states of placed networks and optimizers, as checkpoints store them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pdmd.distributed.optimization import Optimizers
from pdmd.distributed.plans import plain_path

__all__ = [
    "LocalStates",
    "Moments",
    "StateLayout",
    "blank_moments",
    "load_moments",
    "moments_of",
    "parameter_names",
]

Moments = dict[str, dict[str, Tensor]]
"""The optimizer's state of every parameter, by the parameter's name and the state's."""


class StateLayout(ABC):
    """Takes states out of placed networks, and puts them back."""

    @abstractmethod
    def tensors(self, network: nn.Module) -> dict[str, Tensor]:
        """Returns a network's state as checkpoints store it: in the network's own layout."""

    @abstractmethod
    def load(self, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Loads what :meth:`tensors` returned, filled from a checkpoint."""

    @abstractmethod
    def full(self, network: nn.Module) -> dict[str, Tensor]:
        """Returns a network's full state, as plain tensors on the CPU, on every rank."""

    def moments(self, network: nn.Module, optimizers: Optimizers) -> Moments:
        """Returns the state of every parameter's optimizer, by the parameter's name."""
        return moments_of(network, optimizers)

    def blank_moments(self, network: nn.Module) -> Moments:
        """Returns what :meth:`moments` returns after a first step, for a checkpoint to fill."""
        return blank_moments(network)

    def load_moments(
        self,
        network: nn.Module,
        optimizers: Optimizers,
        moments: Mapping[str, Mapping[str, Tensor]],
    ) -> None:
        """Loads what :meth:`moments` returned, filled from a checkpoint."""
        load_moments(network, optimizers, moments)


class LocalStates(StateLayout):
    """One process: states are the networks' own."""

    def tensors(self, network: nn.Module) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in network.state_dict().items()}

    def load(self, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        network.load_state_dict(dict(tensors))

    def full(self, network: nn.Module) -> dict[str, Tensor]:
        return {name: value.detach().cpu() for name, value in network.state_dict().items()}


def parameter_names(network: nn.Module) -> dict[Tensor, str]:
    """Names parameters as the bare network does, whatever wraps its blocks."""
    return {parameter: plain_path(name) for name, parameter in network.named_parameters()}


def moments_of(network: nn.Module, optimizers: Optimizers) -> Moments:
    """Returns the state of every parameter's optimizer; empty before its first step."""
    names = parameter_names(network)
    return {
        names[parameter]: dict(state)
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
    }


def blank_moments(network: nn.Module) -> Moments:
    """Returns the state of every parameter's Adam before a first step."""
    return {
        name: {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
        }
        for parameter, name in parameter_names(network).items()
    }


def load_moments(
    network: nn.Module, optimizers: Optimizers, moments: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Loads what :func:`moments_of` returned."""
    names = parameter_names(network)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if names[parameter] in moments:
                    optimizer.state[parameter] = dict(moments[names[parameter]])
