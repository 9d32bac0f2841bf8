"""State layouts: states of placed networks and optimizers, in the layout of checkpoints."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pdmd.distributed.optimization import Optimizers
from pdmd.distributed.plans import plain_path
from pdmd.training.streamed_adam import StreamedAdam

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
"""The optimizer state of every parameter, by the names of parameter and state."""


class StateLayout(ABC):
    """Extracts and restores the states of placed networks and optimizers."""

    @abstractmethod
    def tensors(self, network: nn.Module) -> dict[str, Tensor]:
        """Returns a network's state in the layout of checkpoints: that of the plain network."""

    @abstractmethod
    def load(self, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Loads what :meth:`tensors` returned, filled from a checkpoint."""

    @abstractmethod
    def full(self, network: nn.Module) -> dict[str, Tensor]:
        """Returns a network's full state on every rank, as plain tensors on the CPU."""

    def moments(self, network: nn.Module, optimizers: Optimizers) -> Moments:
        """Returns the optimizer state of every parameter, by the parameter's name."""
        return moments_of(network, optimizers)

    def blank_moments(self, network: nn.Module, optimizers: Optimizers) -> Moments:
        """Returns zeros in the layout of :meth:`moments`, to be filled from a checkpoint."""
        return blank_moments(network, optimizers)

    def load_moments(
        self,
        network: nn.Module,
        optimizers: Optimizers,
        moments: Mapping[str, Mapping[str, Tensor]],
    ) -> None:
        """Loads what :meth:`moments` returned, filled from a checkpoint."""
        load_moments(network, optimizers, moments)


class LocalStates(StateLayout):
    """One process: the states of plain networks."""

    def tensors(self, network: nn.Module) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in network.state_dict().items()}

    def load(self, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        network.load_state_dict(dict(tensors))

    def full(self, network: nn.Module) -> dict[str, Tensor]:
        return {name: value.detach().cpu() for name, value in network.state_dict().items()}


def parameter_names(network: nn.Module) -> dict[Tensor, str]:
    """Returns the names of parameters in the plain network, without those of wrappers."""
    return {parameter: plain_path(name) for name, parameter in network.named_parameters()}


def moments_of(network: nn.Module, optimizers: Optimizers) -> Moments:
    """Returns the optimizer state of every parameter; empty before the first step."""
    names = parameter_names(network)
    return {
        names[parameter]: dict(state)
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
    }


def blank_moments(network: nn.Module, optimizers: Optimizers) -> Moments:
    """Returns the Adam state of every parameter before the first step."""
    streamed = {
        parameter: optimizer
        for optimizer in optimizers
        if isinstance(optimizer, StreamedAdam)
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    return {
        name: streamed[parameter].blank_state(parameter)
        if parameter in streamed
        else {
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
