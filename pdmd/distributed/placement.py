"""Placement: moves, shards and parallelizes networks over devices and ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TypeVar

import torch
from torch import nn

from pdmd.diffusion.denoisers import Denoiser
from pdmd.distillation.adapters import adapted_parts
from pdmd.distributed.activation_checkpointing import checkpoint_units, uncheckpoint_units

__all__ = ["LocalPlacement", "Placement", "set_precision", "store_in", "widen"]

N = TypeVar("N", bound=nn.Module)


class Placement(ABC):
    """Places networks for a training.

    Attributes:
        in_place: Whether placed networks remain plain networks, whose state needs no gathering.
    """

    in_place: bool = True

    def check(self, network: nn.Module) -> None:
        """Checks that a network can be placed.

        Raises:
            ValueError: If it cannot be.
        """
        return

    def outline(self, network: N) -> N:
        """Returns what the networks of a distillation are copied from, and placed.

        Args:
            network: The teacher.

        Returns:
            The network itself, or an outline of it (:mod:`pdmd.distributed.weight_sources`),
            whose copies take no memory before they are placed.
        """
        return network

    @abstractmethod
    def frozen(
        self,
        network: Denoiser,
        *,
        shared: bool = False,
        offload: bool = False,
        precision: torch.dtype | None = None,
    ) -> Denoiser:
        """Places a frozen network, and returns the placed one, until :meth:`release`.

        Args:
            network: The network.
            shared: Whether adapters share its modules as their base.
            offload: Whether its parameters are kept in CPU memory, those of a base under adapters
                included.
            precision: The dtype in which it computes; the placement's by default.

        Raises:
            ValueError: If this placement does not support adapters over a shared base, or offload.
        """

    @abstractmethod
    def trained(
        self,
        network: N,
        *,
        offload: bool = False,
        precision: torch.dtype | None = None,
        storage: torch.dtype = torch.float32,
    ) -> N:
        """Places a trainable network, or the average of one, and returns it.

        Args:
            network: The network.
            offload: Whether its parameters are kept in CPU memory.
            precision: The dtype in which it computes; the placement's by default.
            storage: The dtype of its parameters.

        Raises:
            ValueError: If this placement does not support offload.
        """

    @abstractmethod
    def release(self, network: nn.Module) -> None:
        """Undoes :meth:`frozen` for a network placed in place."""


class LocalPlacement(Placement):
    """One process: networks stay as they are, on one device.

    Args:
        device: The device.
        precision: The dtype in which networks compute; trainable parameters are float32.
        activation_checkpointing: Whether the backward pass recomputes every unit of a network.
    """

    def __init__(
        self, device: torch.device, precision: torch.dtype, *, activation_checkpointing: bool
    ) -> None:
        self.device, self.precision = device, precision
        self.activation_checkpointing = activation_checkpointing

    def frozen(
        self,
        network: Denoiser,
        *,
        shared: bool = False,
        offload: bool = False,
        precision: torch.dtype | None = None,
    ) -> Denoiser:
        self._place(network, offload, precision or self.precision)
        return network

    def trained(
        self,
        network: N,
        *,
        offload: bool = False,
        precision: torch.dtype | None = None,
        storage: torch.dtype = torch.float32,
    ) -> N:
        self._place(network, offload, precision or self.precision)
        store_in(network, storage)
        return network

    def release(self, network: nn.Module) -> None:
        for one in (network, *(part.base for part in adapted_parts(network))):
            one.to("cpu")
            set_precision(one, torch.float32)
            uncheckpoint_units(one)

    def _place(self, network: nn.Module, offload: bool, precision: torch.dtype) -> None:
        if offload:
            raise ValueError(
                "networks are offloaded by sharding them; use TitanRuntime, which one process can "
                "be too"
            )
        for one in (network, *(part.base for part in adapted_parts(network))):
            one.to(self.device)
            set_precision(one, precision)
            if self.activation_checkpointing:
                checkpoint_units(one)


def widen(network: nn.Module) -> None:
    """Casts parameters of narrower dtypes to float32, in which small updates do not vanish."""
    for parameter in network.parameters():
        if parameter.is_floating_point() and parameter.itemsize < torch.float32.itemsize:
            parameter.data = parameter.data.float()


def store_in(network: nn.Module, storage: torch.dtype) -> None:
    """Casts the parameters of a network to the dtype in which they are stored.

    Args:
        network: The network.
        storage: The dtype; float32 leaves wider ones as they are.
    """
    if storage == torch.float32:
        widen(network)
        return
    for parameter in network.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(storage)


def set_precision(network: nn.Module, precision: torch.dtype) -> None:
    """Sets the dtype in which the denoisers in a network compute."""
    for module in network.modules():
        if isinstance(module, Denoiser):
            module.precision = precision
