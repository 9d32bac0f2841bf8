"""Activation checkpointing: blocks store their inputs only, and are recomputed in backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from torch.utils.checkpoint import checkpoint

from pdmd.distillation.adapters import adapted_parts, checkpoint_contexts
from pdmd.distributed.parameter_views import override
from pdmd.distributed.plans import units_of

__all__ = ["checkpoint_units", "recomputes", "uncheckpoint_units"]


def checkpoint_units(network: nn.Module) -> None:
    """Makes the backward pass recompute the activations of a network's units.

    This applies to calls that record a gradient. A unit is recomputed under the adapter of its
    forward pass. Names of modules and parameters do not change.

    Args:
        network: The network, changed in place.
    """
    for _, unit in units_of(network):
        if not isinstance(unit, _Checkpointed):
            override(unit, _Checkpointed)


def uncheckpoint_units(network: nn.Module) -> None:
    """Undoes :func:`checkpoint_units`."""
    for module in network.modules():
        if isinstance(module, _Checkpointed):
            module.__class__ = type(module).__bases__[1]


def recomputes(network: nn.Module) -> bool:
    """Returns whether the backward pass recomputes whole units, unlike selective checkpointing."""
    bases = (part.base for part in adapted_parts(network))
    return any(
        isinstance(module, _Checkpointed)
        or isinstance(module, CheckpointWrapper)  # torchtitan's
        and "context_fn" not in module.checkpoint_fn.keywords
        for one in (network, *bases)
        for module in one.modules()
    )


class _Checkpointed(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        forward = super().forward  # pyright: ignore[reportAttributeAccessIssue]
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(
            forward, *args, use_reentrant=False, context_fn=checkpoint_contexts, **kwargs
        )
