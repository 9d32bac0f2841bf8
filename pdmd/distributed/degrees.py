"""Degrees of parallelism: how many ranks share the work in each way."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Degrees"]


@dataclass(frozen=True, kw_only=True)
class Degrees:
    """How many ranks share the work in each way; the planner and the trainer read the same one.

    Attributes:
        dp_replicate: Replicas of the shards, each with its part of the batch (HSDP).
        dp_shard: Ranks that shard parameters, gradients and optimizer states, each with its part
            of the batch (FSDP).
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
                raise ValueError(f"parallel.{name} is at least 1, got {getattr(self, name)}")

    @classmethod
    def over(
        cls, world: int, *, dp_replicate: int = 1, dp_shard: int = -1, cp: int = 1, tp: int = 1
    ) -> Degrees:
        """Returns the degrees of a number of ranks.

        Args:
            world: The number of ranks.
            dp_replicate: As in the class.
            dp_shard: As in the class; -1 takes the ranks that the other degrees leave.
            cp: As in the class.
            tp: As in the class.

        Raises:
            ValueError: If the degrees do not multiply to the number of ranks.
        """
        if dp_shard < 1 and dp_shard != -1:
            raise ValueError(
                f"parallel.dp_shard is at least 1, or -1 for the rest, got {dp_shard}"
            )
        others = cls(dp_replicate=dp_replicate, cp=cp, tp=tp).ranks
        if dp_shard == -1:
            if world % others:
                raise ValueError(
                    f"{world} ranks do not divide by dp_replicate x cp x tp = {dp_replicate} x "
                    f"{cp} x {tp} = {others}; change the degrees or --nproc-per-node"
                )
            dp_shard = world // others
        degrees = cls(dp_replicate=dp_replicate, dp_shard=dp_shard, cp=cp, tp=tp)
        if degrees.ranks != world:
            raise ValueError(
                f"dp_replicate x dp_shard x cp x tp = {dp_replicate} x {dp_shard} x {cp} x {tp} = "
                f"{degrees.ranks}, but there are {world} ranks; change the degrees or "
                "--nproc-per-node"
            )
        return degrees

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
