"""The units and sharded layers of a network, from its parallel plans.

This is the only module of the planner that depends on the structure of a network.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from pdmd.distributed import Columnwise, PackedColumnwise, PackedRowwise, Rowwise
from pdmd.distributed import units_of as stated_units
from pdmd.distributed.plans import matching, plans_of

__all__ = ["Split", "heads_of", "split_of", "units_of"]


def units_of(network: nn.Module) -> dict[str, nn.Module]:
    """Returns the blocks that are sharded and checkpointed one by one, by name.

    Args:
        network: The network.

    Returns:
        The blocks; empty for a network without a parallel plan, which is sharded as a whole.
    """
    return dict(stated_units(network))


@dataclass(frozen=True, kw_only=True)
class Split:
    """The linear layers that tensor parallelism shards.

    Attributes:
        column_wise: Layers whose outputs are sharded.
        row_wise: Layers whose inputs are sharded and whose outputs are summed over ranks.
    """

    column_wise: tuple[nn.Linear, ...]
    row_wise: tuple[nn.Linear, ...]


def split_of(network: nn.Module) -> Split:
    """Returns the linear layers that tensor parallelism shards.

    Args:
        network: The network.

    Returns:
        The layers; empty for a network without a tensor plan.
    """
    columns: list[nn.Linear] = []
    rows: list[nn.Linear] = []
    for path, plan in plans_of(network).items():
        module = network.get_submodule(path)
        for pattern, style in plan.tensor.styles.items() if plan.tensor else ():
            layers = [m for _, m in matching(module, pattern) if isinstance(m, nn.Linear)]
            if isinstance(style, Columnwise | PackedColumnwise):
                columns += layers
            elif isinstance(style, Rowwise | PackedRowwise):
                rows += layers
    return Split(column_wise=tuple(columns), row_wise=tuple(rows))


def heads_of(network: nn.Module) -> int:
    """Returns the attention heads of the units; 0 without a tensor or context plan."""
    for path, plan in plans_of(network).items():
        if plan.tensor is None and plan.context is None:
            continue
        module = network.get_submodule(path)
        for unit in (unit for pattern in plan.units for _, unit in matching(module, pattern)):
            for part in unit.modules():
                heads = getattr(part, "heads", None)
                if isinstance(heads, int):
                    return heads
    return 0
