"""Offload: what is kept in CPU memory, and copied to the device when it is needed.

Frozen networks and averages are sharded modules whose shards lie in CPU memory, pinned where there
is an accelerator: ``fully_shard`` copies a unit's shards to the device and gathers them while the
unit before computes. Averages and moments are streamed through the device once an update.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Offload"]


@dataclass(frozen=True, kw_only=True)
class Offload:
    """What is kept in CPU memory.

    Attributes:
        teacher: The teacher, and with adapters the base that all roles share.
        experts: The finished experts.
        averages: The weight averages of the experts in training.
        optimizers: The moments of the optimizers.
    """

    teacher: bool = False
    experts: bool = False
    averages: bool = False
    optimizers: bool = False

    @property
    def networks(self) -> bool:
        """Whether networks are offloaded, which only sharded ones can be."""
        return self.teacher or self.experts or self.averages
