"""Recomputation: blocks that keep their inputs alone and are computed again when it is asked."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from torch.utils.checkpoint import checkpoint

from pdmd.distillation.adapters import adapted_parts, checkpoint_contexts
from pdmd.distributed.parameter_views import extend
from pdmd.distributed.plans import units_of

__all__ = ["keep_activations", "checkpoint_units", "recomputes"]


def checkpoint_units(network: nn.Module) -> None:
    """Has a network's units compute their forward pass again in the backward pass.

    Only calls that record a gradient do so. A unit is computed again under the adapter of its
    call. Names of modules and parameters stay.

    Args:
        network: The network, changed in place.
    """
    for _, unit in units_of(network):
        if not isinstance(unit, _Recomputed):
            extend(unit, _Recomputed)


def keep_activations(network: nn.Module) -> None:
    """Undoes :func:`checkpoint_units`."""
    for module in network.modules():
        if isinstance(module, _Recomputed):
            module.__class__ = type(module).__bases__[1]


def recomputes(network: nn.Module) -> bool:
    """Says whether a backward pass computes every unit again; selective recomputation does not."""
    bases = (part.base for part in adapted_parts(network))
    return any(
        isinstance(module, _Recomputed)
        or isinstance(module, CheckpointWrapper)  # torchtitan's
        and "context_fn" not in module.checkpoint_fn.keywords
        for one in (network, *bases)
        for module in one.modules()
    )


class _Recomputed(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        forward = super().forward  # pyright: ignore[reportAttributeAccessIssue]
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(
            forward, *args, use_reentrant=False, context_fn=checkpoint_contexts, **kwargs
        )
