"""Runtimes: where a distillation runs, as four parts with one purpose each.

The training loop is the same everywhere. What differs between a process on a laptop and many GPUs
is how networks are placed, how they are optimized, what ranks communicate, and how states are
stored. :class:`OneProcess` is torch alone; :class:`~pdmd.distributed.titan.TitanRuntime` composes
torchtitan's parts.
"""

from __future__ import annotations

import torch

from pdmd.distributed.communicator import Communicator, SingleRank
from pdmd.distributed.optimization import LocalOptimization, Optimization
from pdmd.distributed.placement import LocalPlacement, Placement
from pdmd.distributed.state_layout import LocalStates, StateLayout

__all__ = ["OneProcess", "Runtime", "pick_device"]


class Runtime:
    """Where a distillation runs.

    Args:
        device: Where this process computes.
        placement: Places networks.
        optimization: Optimizes placed networks.
        ranks: Communicates with the other ranks.
        states: Takes states out of placed networks and optimizers, and puts them back.
        loss_scale: What losses are multiplied by before the backward pass.
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
    ) -> None:
        self.device, self.loss_scale = device, loss_scale
        self.placement, self.optimization = placement, optimization
        self.ranks, self.states = ranks, states

    @property
    def main(self) -> bool:
        """Whether this process writes files and reports progress."""
        return self.ranks.main


class OneProcess(Runtime):
    """A single process: networks stay as they are, on one device.

    Args:
        device: The device.
        precision: The type in which networks compute; parameters that train and losses are
            float32.
        activation_checkpointing: Whether the backward pass recomputes every unit of a network,
            which saves the memory of activations.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        precision: torch.dtype = torch.float32,
        *,
        activation_checkpointing: bool = False,
    ) -> None:
        device = torch.device(device)
        super().__init__(
            device=device,
            placement=LocalPlacement(
                device, precision, activation_checkpointing=activation_checkpointing
            ),
            optimization=LocalOptimization(),
            ranks=SingleRank(),
            states=LocalStates(),
        )


def pick_device(name: str) -> torch.device:
    """Returns a device by name; ``auto`` is CUDA's where available, else the CPU.

    Raises:
        ValueError: If it is not available.
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
