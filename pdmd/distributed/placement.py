"""Placement: what networks become on the devices and ranks of a training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TypeVar

import torch
from torch import Tensor, nn

from pdmd.diffusion.denoisers import Denoiser
from pdmd.distillation.adapters import adapted_parts
from pdmd.distributed.activation_checkpointing import checkpoint_units, keep_activations

__all__ = ["LocalPlacement", "Placement", "local_part", "set_precision", "widen"]

N = TypeVar("N", bound=nn.Module)


class Placement(ABC):
    """Places networks for a training.

    Attributes:
        in_place: Whether placed networks remain plain ones, so that they need no gathering.
    """

    in_place: bool = True

    def check(self, network: nn.Module) -> None:
        """Checks that a network can be placed, before any is.

        Raises:
            ValueError: If it cannot.
        """
        return

    @abstractmethod
    def frozen(self, network: Denoiser, *, shared: bool = False) -> Denoiser:
        """Returns what evaluates a network that does not train, until :meth:`release`.

        Args:
            network: The network.
            shared: Whether adapters will run over its parts.

        Raises:
            ValueError: If adapters cannot.
        """

    @abstractmethod
    def trained(self, network: N) -> N:
        """Places a network that trains, or the average of one, and returns it."""

    @abstractmethod
    def release(self, network: nn.Module) -> None:
        """Undoes :meth:`frozen` where that changed the network."""


class LocalPlacement(Placement):
    """One process: networks stay as they are, on one device.

    Args:
        device: The device.
        precision: The type in which networks compute; parameters that train are float32.
        activation_checkpointing: Whether the backward pass recomputes every unit of a network.
    """

    def __init__(
        self, device: torch.device, precision: torch.dtype, *, activation_checkpointing: bool
    ) -> None:
        self.device, self.precision = device, precision
        self.activation_checkpointing = activation_checkpointing

    def frozen(self, network: Denoiser, *, shared: bool = False) -> Denoiser:
        self._place(network)
        return network

    def trained(self, network: N) -> N:
        self._place(network)
        widen(network)
        return network

    def release(self, network: nn.Module) -> None:
        for one in (network, *(part.base for part in adapted_parts(network))):
            one.to("cpu")
            set_precision(one, torch.float32)
            keep_activations(one)

    def _place(self, network: nn.Module) -> None:
        for one in (network, *(part.base for part in adapted_parts(network))):
            one.to(self.device)
            set_precision(one, self.precision)
            if self.activation_checkpointing:
                checkpoint_units(one)


def local_part(value: Tensor) -> Tensor:
    """Returns this rank's part of a sharded tensor; a plain tensor itself."""
    to_local = getattr(value, "to_local", None)
    return value if to_local is None else to_local()


def widen(network: nn.Module) -> None:
    """Keeps parameters of narrower types in float32, where small updates do not round away."""
    for parameter in network.parameters():
        if parameter.is_floating_point() and parameter.itemsize < torch.float32.itemsize:
            parameter.data = parameter.data.float()


def set_precision(network: nn.Module, precision: torch.dtype) -> None:
    """Sets the type in which the denoisers within a network compute."""
    for module in network.modules():
        if isinstance(module, Denoiser):
            module.precision = precision
