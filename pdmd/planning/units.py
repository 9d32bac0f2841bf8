"""What a network is cut into: its units, and the weights that tensor parallelism splits.

The one place where the planner looks inside a network.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

__all__ = ["Split", "heads_of", "split_of", "units_of"]

COLUMN_WISE = re.compile(
    r"(^|\.)(to_[qkv]|add_[qkv]_proj|qkv|net\.0\.proj|mlp\.0|mlp\.fc1)$",
)
ROW_WISE = re.compile(r"(^|\.)(to_out\.0|to_add_out|proj|net\.2|mlp\.2|mlp\.fc2)$")


def units_of(network: nn.Module) -> dict[str, nn.Module]:
    """Returns the blocks that are sharded and checkpointed one by one, by name.

    They are the entries of the :class:`~torch.nn.ModuleList` that holds most parameters, and of
    the lists beside it whose entries hold at least a tenth of its entries' parameters.

    Args:
        network: The network.

    Returns:
        The blocks, in the order of their names' appearance; none for a network without a list.
    """
    lists = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and _size(module)
    }
    if not lists:
        return {}
    largest = max(lists, key=lambda name: _size(lists[name]))
    parent, least = largest.rpartition(".")[0], _size(lists[largest][0]) / 10
    chosen = [
        name
        for name, blocks in lists.items()
        if name.rpartition(".")[0] == parent and min(map(_size, blocks)) >= least
    ]
    return {f"{name}.{i}": block for name in chosen for i, block in enumerate(lists[name]) if name}


@dataclass(frozen=True, kw_only=True)
class Split:
    """The linear layers that tensor parallelism splits.

    Attributes:
        column_wise: Those whose outputs are split.
        row_wise: Those whose inputs are split and whose outputs are summed over ranks.
    """

    column_wise: tuple[nn.Linear, ...]
    row_wise: tuple[nn.Linear, ...]


def split_of(network: nn.Module) -> Split:
    """Finds the linear layers inside the units that tensor parallelism splits, by their names.

    Args:
        network: The network.

    Returns:
        The split; empty where no unit has a pair of both sorts, so that nothing can be split.
    """
    columns, rows = [], []
    for unit in units_of(network).values():
        for name, module in unit.named_modules():
            if isinstance(module, nn.Linear):
                if COLUMN_WISE.search(name):
                    columns.append(module)
                elif ROW_WISE.search(name):
                    rows.append(module)
    if not columns or not rows:
        return Split(column_wise=(), row_wise=())
    return Split(column_wise=tuple(columns), row_wise=tuple(rows))


def heads_of(network: nn.Module) -> int:
    """Returns the attention heads of the units, 0 for a network without attention."""
    for unit in units_of(network).values():
        for module in unit.modules():
            heads = getattr(module, "heads", None)
            if isinstance(heads, int):
                return heads
    return 0


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
