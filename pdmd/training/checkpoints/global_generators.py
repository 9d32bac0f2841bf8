"""Global generators: torch's own random states, by rank, in checkpoints.

pdmd samples from explicit generators, but a network may draw from torch's global ones: dropout
does. Each rank has states of its own, of the CPU and of its device, stored under the rank's
number. A run that resumes on fewer ranks restores those of its ranks; on more, the others keep the
states that they started with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pdmd.training.checkpoints.checkpointer import NoCheckpoints

__all__ = ["describe_global_generators", "global_states", "load_global_states"]


def global_states(device: torch.device) -> dict[str, Tensor]:
    """Returns the states of this rank's global generators, by their names in a checkpoint.

    Args:
        device: The device of the training.
    """
    rank = dist.get_rank() if dist.is_initialized() else 0
    states = {f"global_rng.{rank}.cpu": torch.get_rng_state()}
    if device.type != "cpu":
        module = torch.get_device_module(device)
        states[f"global_rng.{rank}.{device.type}"] = module.get_rng_state(device)
    return states


def describe_global_generators(device: torch.device) -> dict[str, Any]:
    """Returns which states a checkpoint has, as JSON values for its cursor."""
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    return {"ranks": ranks, "device": device.type}


def load_global_states(
    checkpointer: NoCheckpoints, cursor: Mapping[str, Any], device: torch.device
) -> None:
    """Restores the states of this rank's global generators, as far as a checkpoint has them.

    Args:
        checkpointer: Has read the checkpoint.
        cursor: The checkpoint's cursor.
        device: The device of the training.
    """
    known = cursor.get("global_generators", {"ranks": 0, "device": "cpu"})
    rank = dist.get_rank() if dist.is_initialized() else 0
    own = {
        name: torch.empty_like(state)
        for name, state in global_states(device).items()
        if rank < known["ranks"] and name.split(".")[-1] in ("cpu", known["device"])
    }
    checkpointer.load(own)
    for name, state in own.items():
        if name.endswith(".cpu"):
            torch.set_rng_state(state)
        else:
            torch.get_device_module(device).set_rng_state(state, device)
