"""Runtimes: the placement, optimization, communication and state layout of a distillation.

The training loop is the same on a laptop and on many GPUs; these four parts differ.
:class:`OneProcess` uses torch only; :class:`~pdmd.distributed.titan.TitanRuntime` composes parts
of torchtitan.
"""

from __future__ import annotations

import torch

from pdmd.distributed.communicator import Communicator, SingleRank
from pdmd.distributed.offload import Offload
from pdmd.distributed.optimization import LocalOptimization, Optimization
from pdmd.distributed.placement import LocalPlacement, Placement
from pdmd.distributed.role_types import RoleTypes
from pdmd.distributed.state_layout import LocalStates, StateLayout

__all__ = ["OneProcess", "Runtime", "pick_device"]


class Runtime:
    """The device and ranks of a distillation.

    Args:
        device: Device of this process.
        placement: Places networks.
        optimization: Optimizes placed networks.
        ranks: Communicates with the other ranks.
        states: Extracts and restores the states of placed networks and optimizers.
        loss_scale: Factor of the losses in the backward pass.
        offload: What is kept in CPU memory; nothing by default.
        types: The dtypes of the networks by role; float32 by default.
    """

    def __init__(
        self,
        *,
        device: torch.device,
        placement: Placement,
        optimization: Optimization,
        ranks: Communicator,
        states: StateLayout,
        loss_scale: float = 1.0,
        offload: Offload | None = None,
        types: RoleTypes | None = None,
    ) -> None:
        self.device, self.loss_scale = device, loss_scale
        self.placement, self.optimization = placement, optimization
        self.ranks, self.states = ranks, states
        self.offload, self.types = offload or Offload(), types or RoleTypes()

    def synchronize(self) -> None:
        """Waits for the device, and for copies from it to CPU memory."""
        if self.device.type not in ("cpu", "meta"):
            torch.accelerator.synchronize(self.device)

    @property
    def main(self) -> bool:
        """Whether this process writes files and reports progress."""
        return self.ranks.main


class OneProcess(Runtime):
    """A single process: networks stay as they are, on one device.

    Args:
        device: The device; ``auto``, the default, is CUDA's where available, else the CPU, as on
            the command line.
        precision: The dtype in which networks compute; trainable parameters and losses are
            float32.
        activation_checkpointing: Whether the backward pass recomputes the activations of every
            unit of a network, to save memory.
        offload_optimizers: Whether the moments of the optimizers are kept in CPU memory.
        types: The dtypes of roles in place of ``precision``. The teacher's weights stay as they
            are; it computes in its type.
    """

    def __init__(
        self,
        device: torch.device | str = "auto",
        precision: torch.dtype = torch.float32,
        *,
        activation_checkpointing: bool = False,
        offload_optimizers: bool = False,
        types: RoleTypes | None = None,
    ) -> None:
        device = pick_device(device) if isinstance(device, str) else device
        super().__init__(
            device=device,
            placement=LocalPlacement(
                device, precision, activation_checkpointing=activation_checkpointing
            ),
            optimization=LocalOptimization(offload=offload_optimizers),
            ranks=SingleRank(),
            states=LocalStates(),
            offload=Offload(optimizers=offload_optimizers),
            types=types or RoleTypes.alike(precision),
        )


def pick_device(name: str) -> torch.device:
    """Returns a device by name; ``auto`` is CUDA's where available, else the CPU.

    Raises:
        ValueError: If the device is unknown or not available.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"unknown device {name!r}; use auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):  # times are float64, which others lack
        raise ValueError(f"device {name!r} is not one of auto, cpu and cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} is not available here; use auto or cpu")
    return device
