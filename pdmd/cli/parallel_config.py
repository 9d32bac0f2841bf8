"""The configuration of parallelism: how a run is distributed over ranks, and how it computes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import torch

from pdmd.distributed.degrees import Degrees, ranks_per_node
from pdmd.distributed.offload import Offload
from pdmd.distributed.role_types import RoleTypes
from pdmd.distributed.runtime import OneProcess, Runtime, pick_device
from pdmd.extras import require

__all__ = ["PRECISIONS", "ParallelConfig"]

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "auto": torch.float32}
"""The types in which networks can compute, by name."""


@dataclass(kw_only=True)
class ParallelConfig:
    """How the run is distributed over the ranks that torchrun starts, and how it computes."""

    dp_replicate: int = -1
    """Replicas of the sharded networks (HSDP); -1 for one on each node."""
    dp_shard: int = -1
    """Ranks that shard parameters and split the batch (FSDP); -1 for those of a node, or for all
    that are left where dp_replicate is given."""
    cp: int = 1
    """Ranks that split each sample's tokens (context parallel)."""
    tp: int = 1
    """Ranks that split each layer (tensor parallel)."""
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """Type in which networks compute; master weights, gradients and losses are float32. With auto,
    an evaluation has that of the run, if the student is in its folder; otherwise float32."""
    activation_checkpointing: Literal["none", "full", "selective"] = "none"
    """Recompute blocks in the backward pass (full), or all but their costly operations."""
    compile: bool = False
    """Compile the blocks of every network."""
    offload: tuple[Literal["teacher", "experts", "averages", "optimizers"], ...] = ()
    """What is kept in CPU memory: teacher, (finished) experts, averages, optimizers."""
    deterministic: bool = False
    """Insist on deterministic algorithms, which may be slower."""
    torchtitan: bool = False
    """Use torchtitan's parts for a single process too; several ranks always do."""
    device: str = "auto"
    """Where a single process computes: auto, cpu or cuda."""
    timeout: int = 600
    """Seconds after which a collective that does not end is aborted."""
    heartbeat_timeout: int = 60
    """Seconds without a heartbeat after which a rank is taken for dead."""

    def build(self, seed: int, types: RoleTypes | None = None) -> Runtime:
        """Builds the runtime; on several ranks it joins them.

        Args:
            seed: Seed of torch's global generators.
            types: The dtypes of roles; all in ``precision`` by default.

        Raises:
            ValueError: If the degrees do not multiply to the number of ranks, or a package is
                missing.
        """
        precision = PRECISIONS[self.precision]
        degrees = {name: getattr(self, name) for name in ("dp_replicate", "dp_shard", "cp", "tp")}
        world = int(os.environ.get("WORLD_SIZE", "1"))
        by_node = self.dp_replicate == self.dp_shard == -1
        Degrees.over(world, **degrees, per_node=ranks_per_node(world) if by_node else None)
        offload = Offload(**{name: True for name in self.offload})
        parts = self.torchtitan or self.compile or self.activation_checkpointing == "selective"
        parts = parts or offload.networks  # shards are what is offloaded
        if world == 1 and not parts:
            if self.deterministic:
                torch.use_deterministic_algorithms(True)
            return OneProcess(
                pick_device(self.device),
                precision,
                activation_checkpointing=self.activation_checkpointing == "full",
                offload_optimizers=offload.optimizers,
                types=types,
            )
        if self.device != "auto":
            raise ValueError(
                f"parallel.device = {self.device!r} is for a single process without torchtitan's "
                "parts; several ranks take the devices that torchrun gives them"
            )
        require("train", "torchtitan", alternative="run one process without torchtitan's parts")
        try:
            from pdmd.distributed.titan import TitanRuntime
        except ImportError as error:
            raise ValueError(
                f"a parallel run needs torchtitan 0.3 and torch 2.12 or later ({error}); install "
                "them, or run one process without compile and selective activation checkpointing"
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
            offload=offload,
            types=types,
        )
