"""Degrees of parallelism.

The ranks form a mesh of ``dp_replicate x dp_shard x cp x tp``. A batch is split over the first
two axes, the tokens of a sample over ``cp``, and the weights of a layer over ``tp``; parameters,
gradients and optimizer states are sharded over ``dp_shard x cp``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from pdmd.arguments import checked

__all__ = ["Degrees", "ranks_per_node"]


@checked
@dataclass(frozen=True, kw_only=True)
class Degrees:
    """The number of ranks along each axis of the mesh, for the planner and the trainer.

    Attributes:
        dp_replicate: Replicas of the sharded parameters (HSDP); the batch is split over them.
        dp_shard: Ranks that shard parameters, gradients and optimizer states (FSDP); the batch is
            split over them.
        cp: Ranks that split every sequence (context parallelism); parameters are sharded over
            them too.
        tp: Ranks that split every layer (tensor parallelism).

    Raises:
        ValueError: If a degree is below 1.
    """

    dp_replicate: int = 1
    dp_shard: int = 1
    cp: int = 1
    tp: int = 1

    def __post_init__(self) -> None:
        for name in ("dp_replicate", "dp_shard", "cp", "tp"):
            if getattr(self, name) < 1:
                raise ValueError(f"parallel.{name} must be at least 1, got {getattr(self, name)}")

    @classmethod
    def over(
        cls,
        world: int,
        *,
        dp_replicate: int = -1,
        dp_shard: int = -1,
        cp: int = 1,
        tp: int = 1,
        per_node: int | None = None,
    ) -> Degrees:
        """Returns the degrees for a number of ranks.

        Parameters are gathered in every pass, and gradients of replicas summed once an update, so
        by default parameters are sharded over the fast links within a node and replicated across
        nodes (HSDP).

        Args:
            world: The number of ranks.
            dp_replicate: As in the class; -1 for all ranks that the other degrees leave.
            dp_shard: As in the class; -1 for those of a node that ``cp x tp`` leaves, or, where
                ``dp_replicate`` is given, for all remaining ranks.
            cp: As in the class.
            tp: As in the class.
            per_node: Ranks of every node; by default one node has all.

        Raises:
            ValueError: If the product of the degrees is not the number of ranks, or ``cp x tp``
                neither divides the ranks of a node nor is a multiple of them.
        """
        for name, value in (("dp_replicate", dp_replicate), ("dp_shard", dp_shard)):
            if value < 1 and value != -1:
                raise ValueError(
                    f"parallel.{name} must be at least 1, or -1 for all remaining ranks, got "
                    f"{value}"
                )
        split = cls(cp=cp, tp=tp).ranks
        if dp_replicate == dp_shard == -1:
            dp_shard = _within_node(world, world if per_node is None else per_node, cp, tp)
        given = [
            (name, value)
            for name, value in (
                ("dp_replicate", dp_replicate),
                ("dp_shard", dp_shard),
                ("cp", cp),
                ("tp", tp),
            )
            if value != -1
        ]
        product = split * max(dp_replicate, 1) * max(dp_shard, 1)
        names = " x ".join(name for name, _ in given)
        values = " x ".join(str(value) for _, value in given)
        if world % product:
            raise ValueError(
                f"{world} ranks are not divisible by {names} = {values} = {product}; change the "
                "degrees or --nproc-per-node"
            )
        if dp_replicate == -1:
            dp_replicate = world // product
        elif dp_shard == -1:
            dp_shard = world // product
        elif product != world:
            raise ValueError(
                f"{names} = {values} = {product}, but there are {world} ranks; change the degrees "
                "or --nproc-per-node"
            )
        return cls(dp_replicate=dp_replicate, dp_shard=dp_shard, cp=cp, tp=tp)

    @property
    def ranks(self) -> int:
        """The number of ranks."""
        return self.dp_replicate * self.dp_shard * self.cp * self.tp

    @property
    def shards(self) -> int:
        """Ranks over which parameters, gradients and optimizer states are sharded."""
        return self.dp_shard * self.cp

    @property
    def batches(self) -> int:
        """Ranks over which the batch is split."""
        return self.dp_replicate * self.dp_shard


def ranks_per_node(world: int) -> int:
    """Returns the number of ranks that torchrun started on every node; all of them without it.

    Args:
        world: The number of ranks.

    Raises:
        ValueError: If nodes have different numbers of ranks.
    """
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    nodes = int(os.environ.get("GROUP_WORLD_SIZE", max(world // here, 1)))
    if here * nodes != world:
        raise ValueError(
            f"{world} ranks run on {nodes} nodes, of which this one has {here}, so nodes have "
            "different numbers of ranks; start as many on each, or set parallel.dp_replicate and "
            "parallel.dp_shard"
        )
    return here


def _within_node(world: int, per_node: int, cp: int, tp: int) -> int:
    """Returns the ranks of a node over which parameters are sharded, apart from ``cp x tp``."""
    split = cp * tp
    if per_node % split == 0:
        return per_node // split
    if split % per_node and world % split == 0:  # else the ranks are not divisible at all
        raise ValueError(
            f"cp x tp = {cp} x {tp} = {split} neither divides the {per_node} ranks of a node nor "
            "is a multiple of them; change the degrees, or set parallel.dp_replicate and "
            "parallel.dp_shard"
        )
    return 1
