"""Activation checkpointing: blocks store their inputs only, and are recomputed in backward."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from torch.utils.checkpoint import checkpoint

from pdmd.distillation.adapters import adapted_parts, checkpoint_contexts
from pdmd.distributed.parameter_views import override
from pdmd.distributed.plans import units_of
from pdmd.distributed.token_counts import RestoredCounts

__all__ = ["checkpoint_units", "recomputes", "restore_counts", "uncheckpoint_units"]


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
        and _inner_contexts(module) is None
        for one in (network, *bases)
        for module in one.modules()
    )


def restore_counts(unit: nn.Module) -> None:
    """Makes a wrapped unit restore the token counts of context parallel ranks.

    Args:
        unit: The unit, in torchtitan's wrapper, changed in place.
    """
    assert isinstance(unit, CheckpointWrapper)
    contexts = RestoredCounts(_inner_contexts(unit))
    unit.checkpoint_fn = partial(unit.checkpoint_fn, context_fn=contexts)


def _inner_contexts(unit: CheckpointWrapper) -> Any:
    """Returns the contexts of selective checkpointing, if a wrapped unit has any."""
    contexts = unit.checkpoint_fn.keywords.get("context_fn")  # type: ignore[union-attr]
    return contexts.inner if isinstance(contexts, RestoredCounts) else contexts


class _Checkpointed(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        forward = super().forward  # pyright: ignore[reportAttributeAccessIssue]
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        contexts = RestoredCounts(checkpoint_contexts)
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)
