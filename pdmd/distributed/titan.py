"""The multi-rank runtime, composed of parts of torchtitan.

It is imported only by parallel runs and on request. The batch is split over
``dp_replicate x dp_shard`` ranks; the ``cp x tp`` ranks of each part have the same rows and noise.

The gradient of a context-parallel network is the sum over its ranks, but ``fully_shard`` averages
over ``dp_shard x cp``, so losses are multiplied by ``cp``.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pdmd.diffusion.routers import RoutedDenoiser
from pdmd.distributed.communicator import Communicator
from pdmd.distributed.degrees import Degrees, ranks_per_node
from pdmd.distributed.full_state_dict import (
    full_moments,
    full_tensors,
    load_permuted,
    permuted_moments,
)
from pdmd.distributed.offload import Offload
from pdmd.distributed.optimization import Optimization, Optimizers, Rates, SingleOptimizer
from pdmd.distributed.rank_consensus import (
    consensus,
    drop_unused,
    highest_over_ranks,
    mean_over_ranks,
)
from pdmd.distributed.role_types import RoleTypes
from pdmd.distributed.runtime import Runtime
from pdmd.distributed.state_layout import (
    Moments,
    StateLayout,
    blank_moments,
    load_moments,
    moments_of,
)
from pdmd.distributed.titan_parts import (
    CommConfig,
    DebugConfig,
    LRSchedulersContainer,
    OptimizersContainer,
    ParallelDims,
    ParamGroupConfig,
    titan_logger,
    titan_tools,
    titan_utils,
)
from pdmd.distributed.titan_placement import ActivationCheckpointing, MeshPlacement
from pdmd.distributed.watchdog import Watchdog
from pdmd.distributed.weight_sources import gathered
from pdmd.training.optimizers import AdamRecipe, ContainerRates, RateSchedule

__all__ = ["TitanRuntime"]


class TitanRuntime(Runtime):
    """Many ranks, started by torchrun, or a single one, with parts of torchtitan.

    Args:
        dp_replicate: Replicas of the sharded networks (HSDP); -1 for one on each node.
        dp_shard: Ranks that shard parameters and split the batch; -1 for those of a node, or for
            all remaining ranks where ``dp_replicate`` is given.
        cp: Ranks that split every sample's tokens.
        tp: Ranks that split every layer.
        precision: The dtype in which networks compute and are gathered; master weights, gradient
            reduction and losses are float32.
        activation_checkpointing: What the backward pass recomputes: ``none``, every unit
            (``full``), or all but the costly operations (``selective``).
        compile: Whether to compile every unit.
        timeout: Seconds after which a collective is aborted.
        heartbeat_timeout: Seconds without a heartbeat after which a rank is considered dead.
        seed: Seed of torch's global generators; training uses explicit ones.
        deterministic: Whether to require deterministic algorithms.
        offload: What is kept in CPU memory; nothing by default.
        types: The dtypes of roles in place of ``precision``.

    Attributes:
        degrees: The degrees of parallelism.

    Raises:
        ValueError: If the product of the degrees is not the number of ranks, or nodes have
            different numbers of ranks.
    """

    def __init__(
        self,
        *,
        dp_replicate: int = -1,
        dp_shard: int = -1,
        cp: int = 1,
        tp: int = 1,
        precision: torch.dtype = torch.float32,
        activation_checkpointing: ActivationCheckpointing = "none",
        compile: bool = False,
        timeout: int = 600,
        heartbeat_timeout: float = 60,
        seed: int = 0,
        deterministic: bool = False,
        offload: Offload | None = None,
        types: RoleTypes | None = None,
    ) -> None:
        offload = offload or Offload()
        ready = dist.is_initialized()
        world = dist.get_world_size() if ready else int(os.environ.get("WORLD_SIZE", "1"))
        self.degrees = Degrees.over(
            world,
            dp_replicate=dp_replicate,
            dp_shard=dp_shard,
            cp=cp,
            tp=tp,
            per_node=ranks_per_node(world) if dp_replicate == dp_shard == -1 else None,
        )
        for name, value in _SINGLE_RANK.items():
            os.environ.setdefault(name, value)
        if titan_tools.device_type == "cpu":
            device = torch.device("cpu")
        else:
            device = torch.device(titan_tools.device_type, int(os.environ["LOCAL_RANK"]))
            torch.accelerator.set_device_index(device.index)
        titan_logger.setLevel(logging.WARNING)
        logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
        if not ready:
            os.environ.pop(
                "TORCH_NCCL_ASYNC_ERROR_HANDLING", None
            )  # torchtitan sets it, and warns if it is set already
            titan_utils.init_distributed(
                CommConfig(init_timeout_seconds=timeout, trace_buf_size=0)
            )
        dims = ParallelDims(
            dp_replicate=self.degrees.dp_replicate,
            dp_shard=self.degrees.dp_shard,
            cp=cp,
            tp=tp,
            pp=1,
            ep=1,
            world_size=world,
            spmd_backend="partial_dtensor",
        )
        dims.build_mesh()
        titan_utils.set_spmd_backend("partial_dtensor")
        with warnings.catch_warnings():  # about random DTensors on the CPU, which are not used
            warnings.simplefilter("ignore")
            titan_utils.set_determinism(
                dims,
                device,
                DebugConfig(seed=seed, deterministic=deterministic),
                distinct_seed_mesh_dims=["batch"],
            )
        super().__init__(
            device=device,
            placement=MeshPlacement(
                dims,
                device,
                precision,
                activation_checkpointing=activation_checkpointing,
                compile=compile,
                offload_bases=offload.teacher,
            ),
            optimization=TitanOptimization(device, offload=offload.optimizers, split=tp > 1),
            ranks=ProcessGroup(dims, device, Watchdog(heartbeat_timeout)),
            states=ShardedStates(),
            loss_scale=float(cp),
            offload=offload,
            types=types or RoleTypes.alike(precision),
        )


class ProcessGroup(Communicator):
    """The ranks of a torch process group.

    Args:
        dims: The mesh.
        device: Device of the collectives.
        watchdog: Detects dead ranks; started here if there are several ranks.
    """

    def __init__(self, dims: ParallelDims, device: torch.device, watchdog: Watchdog) -> None:
        self.device, self.watchdog = device, watchdog
        self.rank = dist.get_rank()
        self.main = self.rank == 0
        self._batch = batch = dims.get_optional_mesh("batch")
        self.data_ranks = dims.dp_replicate * dims.dp_shard
        self.data_rank = 0 if batch is None else batch.get_local_rank()
        self.hosts: dist.ProcessGroup | None = None
        if device.type != "cpu":
            self.hosts = cast("dist.ProcessGroup", dist.new_group(backend="gloo"))
        if dist.get_world_size() > 1:
            watchdog.start()

    def mean(self, value: Tensor) -> Tensor:
        return mean_over_ranks(value, self.device)

    def highest(self, value: int) -> int:
        return highest_over_ranks(value, self.hosts)

    def gather_rows(self, value: Tensor) -> Tensor:
        if self._batch is None or self.data_ranks == 1:
            return value.cpu()
        value = value.to(self.device)
        parts = [torch.empty_like(value) for _ in range(self.data_ranks)]
        dist.all_gather(parts, value.contiguous(), group=self._batch.get_group())
        return torch.cat(parts).cpu()

    def consensus(self) -> AbstractContextManager[None]:
        return consensus(self.rank)

    def failed_rank(self) -> str:
        return self.watchdog.failed_rank() if dist.is_initialized() else ""

    def close(self, error: BaseException | None = None) -> None:
        if not dist.is_initialized():  # already closed
            return
        if dist.get_world_size() > 1:
            if error is None:
                dist.barrier()
            self.watchdog.stop(
                "" if error is None else " ".join(str(error).split()) or type(error).__name__
            )
        if error is None:
            dist.destroy_process_group()


class TitanOptimization(Optimization):
    """torchtitan's containers of optimizers and learning-rate schedulers.

    Args:
        device: Device of this rank.
        offload: Whether to keep moments in CPU memory.
        split: Whether layers are split over ranks (tensor parallelism).
    """

    def __init__(
        self, device: torch.device, *, offload: bool = False, split: bool = False
    ) -> None:
        self.device, self.offload, self.split = device, offload, split

    def optimizers(self, recipe: AdamRecipe, network: nn.Module) -> Optimizers:
        if recipe.bits == 8 and self.split:
            raise ValueError(
                "moments in 8 bits do not support tensor parallelism, which splits the rows of "
                "their blocks; set train.adam_bits = 32 or parallel.tp = 1"
            )
        if self.offload or recipe.bits == 8:
            return SingleOptimizer(recipe.build(network.parameters(), offload=self.offload))
        group = ParamGroupConfig(
            pattern=".*",
            optimizer_name="AdamW",
            optimizer_kwargs={
                "lr": recipe.lr,
                "betas": recipe.betas,
                "weight_decay": recipe.weight_decay,
            },
        )
        config = OptimizersContainer.Config(param_groups=[group], implementation="fused")
        return cast(Optimizers, config.build(model_parts=[network]))

    def rates(self, optimizers: Optimizers, recipe: AdamRecipe, updates: int) -> Rates:
        if isinstance(optimizers, SingleOptimizer):
            return RateSchedule(optimizers, recipe, updates)
        return ContainerRates(
            LRSchedulersContainer(
                cast(OptimizersContainer, optimizers),
                lambda update: recipe.factor(update, updates),
            )
        )

    def clip_gradients(
        self, network: nn.Module, parameters: Sequence[nn.Parameter], max_grad_norm: float
    ) -> Tensor:
        for module in network.modules():
            if isinstance(module, RoutedDenoiser) and module.padded:  # on all ranks alike
                drop_unused(module, self.device)
                module.padded = False
        return titan_utils.clip_grad_norm_(parameters, max_grad_norm, foreach=True)


class ShardedStates(StateLayout):
    """States of sharded networks, in the order of the plain network."""

    def tensors(self, network: nn.Module) -> dict[str, Tensor]:
        return full_tensors(network)

    def load(self, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        load_permuted(network, tensors)

    def full(self, network: nn.Module) -> dict[str, Tensor]:
        return {name: gathered(value).cpu() for name, value in self.tensors(network).items()}

    def moments(self, network: nn.Module, optimizers: Optimizers) -> Moments:
        return full_moments(network, moments_of(network, optimizers))

    def blank_moments(self, network: nn.Module, optimizers: Optimizers) -> Moments:
        return full_moments(network, blank_moments(network, optimizers))

    def load_moments(
        self,
        network: nn.Module,
        optimizers: Optimizers,
        moments: Mapping[str, Mapping[str, Tensor]],
    ) -> None:
        load_moments(network, optimizers, permuted_moments(network, moments))


_SINGLE_RANK = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",
}
"""The environment that torchrun would set for a single process."""
