"""Parallelism: how a run is spread over ranks, as configured."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import torch

from pdmd.distributed.runtime import OneProcess, Runtime, pick_device

__all__ = ["PRECISIONS", "ParallelConfig", "check_degrees"]

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""What networks may compute in, by name."""


@dataclass(kw_only=True)
class ParallelConfig:
    """How the run is spread over the ranks that torchrun starts, and how it computes."""

    dp_replicate: int = 1
    """Copies of the sharded networks (HSDP)."""
    dp_shard: int = -1
    """Ranks that share out parameters and the batch (FSDP); -1 takes what is left."""
    cp: int = 1
    """Ranks that share out each sample's tokens (context parallel)."""
    tp: int = 1
    """Ranks that share out each layer (tensor parallel)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What networks compute in; master weights, gradient reduction and losses are float32."""
    activation_checkpointing: Literal["none", "full", "selective"] = "none"
    """Recompute blocks in the backward pass (full), or all but their costly operations."""
    compile: bool = False
    """Compile the blocks of every network."""
    deterministic: bool = False
    """Insist on deterministic algorithms, which may be slower."""
    torchtitan: bool = False
    """Take torchtitan's parts for a single process too; more ranks always do."""
    device: str = "auto"
    """Where a single process computes: auto, cpu or cuda."""
    timeout: int = 600
    """Seconds after which a communication that does not end is given up."""
    heartbeat_timeout: int = 60
    """Seconds after which a rank that is not heard of is taken for dead."""

    def build(self, seed: int) -> Runtime:
        """Makes the runtime; on several ranks it joins them.

        Raises:
            ValueError: If the degrees do not multiply to the number of ranks, or a part is not
                there.
        """
        precision = PRECISIONS[self.precision]
        degrees = {name: getattr(self, name) for name in ("dp_replicate", "dp_shard", "cp", "tp")}
        world = int(os.environ.get("WORLD_SIZE", "1"))
        check_degrees(world, **degrees)
        if world == 1 and not (
            self.torchtitan or self.compile or self.activation_checkpointing == "selective"
        ):
            if self.deterministic:
                torch.use_deterministic_algorithms(True)
            again = self.activation_checkpointing == "full"
            return OneProcess(pick_device(self.device), precision, activation_checkpointing=again)
        if self.device != "auto":
            raise ValueError(
                f"parallel.device = {self.device!r} is for a single process without torchtitan's "
                "parts; several ranks take the devices that torchrun gives them"
            )
        try:
            from pdmd.distributed.titan import TitanRuntime
        except ImportError as error:
            raise ValueError(
                f"a parallel run needs torchtitan 0.3 and torch 2.12 or later ({error}); install "
                "them, or run one process without compile and selective activation_checkpointing"
            ) from error
        return TitanRuntime(
            **degrees,
            precision=precision,
            activation_checkpointing=self.activation_checkpointing,
            compile=self.compile,
            timeout=self.timeout,
            heartbeat_timeout=self.heartbeat_timeout,
            seed=seed,
            deterministic=self.deterministic,
        )


def check_degrees(world: int, dp_replicate: int, dp_shard: int, cp: int, tp: int) -> int:
    """Returns the sharding degree, filled in if it was -1.

    Raises:
        ValueError: If the degrees do not multiply to the number of ranks.
    """
    degrees = {"dp_replicate": dp_replicate, "cp": cp, "tp": tp}
    for name, degree in degrees.items():
        if degree < 1:
            raise ValueError(f"parallel.{name} is at least 1, got {degree}")
    if dp_shard < 1 and dp_shard != -1:
        raise ValueError(f"parallel.dp_shard is at least 1, or -1 for the rest, got {dp_shard}")
    others = dp_replicate * cp * tp
    if dp_shard == -1:
        if world % others:
            raise ValueError(
                f"{world} ranks do not divide by dp_replicate x cp x tp = {dp_replicate} x {cp} x "
                f"{tp} = {others}; change the degrees or --nproc-per-node"
            )
        return world // others
    if dp_shard * others != world:
        raise ValueError(
            f"dp_replicate x dp_shard x cp x tp = {dp_replicate} x {dp_shard} x {cp} x {tp} = "
            f"{dp_shard * others}, but there are {world} ranks; change the degrees or "
            "--nproc-per-node"
        )
    return dp_shard
