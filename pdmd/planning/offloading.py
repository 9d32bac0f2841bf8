"""Offloading: which roles are kept in pinned CPU memory, and what that leaves on the GPU.

Frozen networks are copied to the GPU unit by unit, one unit ahead of the computation. Averages and
moments are read and written once in an update, a tensor at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Offload"]


@dataclass(frozen=True, kw_only=True)
class Offload:
    """The roles that are kept in CPU memory.

    Attributes:
        teacher: The teacher, and so the base network of adapters over it.
        experts: The finished experts.
        averages: The weight averages of the experts in training.
        optimizers: The moments of both optimizers.
    """

    teacher: bool = False
    experts: bool = False
    averages: bool = False
    optimizers: bool = False

    @property
    def roles(self) -> tuple[str, ...]:
        """The names of the offloaded roles."""
        return tuple(name for name, value in vars(self).items() if value)
