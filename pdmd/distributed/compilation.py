"""Compilation of the units that adapters share.

A compiled unit cannot look up the adapter of the current call, because a graph is bound to the
objects that were found when it was traced. The lookup is therefore done before the unit runs: the
factors of its layers become attributes of the layers, and so inputs of the graph. All blocks of a
class then share one graph for calls without an adapter, and one for those with one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pdmd.distillation.adapters import activate_factors, prepare_layers
from pdmd.distributed.parameter_views import override
from pdmd.distributed.plans import units_of

__all__ = ["compile_units"]

BACKEND = "inductor"
GRAPHS = 64
"""Graphs of a class of blocks: of several roles, with and without gradients, and batch sizes."""


def compile_units(network: nn.Module) -> None:
    """Compiles the units of a base of adapters, in place, when they are first called.

    Args:
        network: The base, before its units are checkpointed and sharded.
    """
    import torch._dynamo as dynamo

    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, GRAPHS)  # type: ignore[assignment]
    compiled: dict[type, Callable[..., Any]] = {}
    for _, unit in units_of(network):
        cls = type(unit)
        if cls not in compiled:
            compiled[cls] = torch.compile(cls.forward, backend=BACKEND)
        layers = prepare_layers(unit)
        override(unit, _Compiled)
        object.__setattr__(unit, "_layers", layers)
        object.__setattr__(unit, "_compiled", compiled[cls])


class _Compiled(nn.Module):
    _layers: list[nn.Module]
    _compiled: Callable[..., Any]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        activate_factors(self._layers)
        return self._compiled(self, *args, **kwargs)
