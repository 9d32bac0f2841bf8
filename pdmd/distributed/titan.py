"""The parallel runtime, composed of torchtitan's parts.

The only module that imports torchtitan, and it is imported by runs that are parallel or ask for
it. What is composed: meshes (``ParallelDims``), process groups, determinism, activation
checkpointing, optimizer and learning-rate containers, and gradient clipping. Its trainer is not
subclassed: that one holds a single model, and a distillation step holds four kinds.

A network is spread in this order: tensor parallel, context parallel, activation checkpointing,
compilation of its units, ``fully_shard`` of each unit and of the whole. The batch is shared out
over ``dp_replicate x dp_shard`` ranks; the ``cp x tp`` ranks of one share see the same rows and
the same noise.

Gradients of a context-parallel network are sums over its ranks' tokens, and ``fully_shard``
averages over ``dp_shard x cp``: losses are multiplied by ``cp``.
"""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
import torchtitan.tools.utils as titan_tools
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

if not torch.accelerator.is_available():  # torchtitan would take "cuda" for granted
    titan_tools.device_type, titan_tools.device_module = "cpu", torch.cpu

from torchtitan.components.optimizer import (
    LRSchedulersContainer,
    OptimizersContainer,
    ParamGroupConfig,
)
from torchtitan.config import CommConfig, DebugConfig
from torchtitan.distributed import ParallelDims, utils
from torchtitan.distributed.activation_checkpoint import FullAC, SelectiveAC
from torchtitan.tools.logging import logger as titan_log

from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.routers import RoutedDenoiser
from pdmd.distillation.adapters import adapted_parts
from pdmd.distributed import (
    check,
    context_parallelize,
    plans_of,
    replicate,
    tensor_parallelize,
    units_of,
)
from pdmd.distributed.activation_checkpointing import checkpoint_units
from pdmd.distributed.degrees import check_degrees
from pdmd.distributed.full_state_dict import (
    full_moments,
    full_tensors,
    permuted_moments,
    restore_permuted,
)
from pdmd.distributed.rank_consensus import agreed, drop_unused, mean_over_ranks, on_any_rank
from pdmd.distributed.runtime import (
    Optimizers,
    Rates,
    Runtime,
    blank_moments,
    moments_of,
    put_moments,
    set_precision,
    widen,
)
from pdmd.distributed.shared_bases import SharedBases, split_factors
from pdmd.distributed.watchdog import Watchdog
from pdmd.objectives.critics import FeatureCritic
from pdmd.teachers.guided import Guided
from pdmd.training.optimizers import AdamRecipe, ContainerRates

__all__ = ["TitanRuntime"]

N = TypeVar("N", bound=nn.Module)
ActivationCheckpointing = Literal["none", "full", "selective"]


class TitanRuntime(Runtime):
    """Many ranks, started by torchrun, or one that wants torchtitan's parts.

    Args:
        dp_replicate: Copies of the sharded networks (HSDP).
        dp_shard: Ranks that share out parameters and the batch; -1 takes what is left.
        cp: Ranks that share out every sample's tokens.
        tp: Ranks that share out every layer.
        precision: The type in which networks compute and are gathered; master weights, gradients'
            reduction and losses are float32.
        activation_checkpointing: What the backward pass recomputes: ``none``, every unit
            (``full``), or all but the costly operations (``selective``).
        compile: Whether to compile every unit.
        timeout: Seconds after which a collective that does not end is given up.
        heartbeat_timeout: Seconds after which a rank that is not heard of is taken for dead.
        seed: Seed of torch's global generators, which explicit ones make rarely used.
        deterministic: Whether to insist on deterministic algorithms.

    Raises:
        ValueError: If the degrees do not multiply to the number of ranks.
    """

    plain = False

    def __init__(
        self,
        *,
        dp_replicate: int = 1,
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
    ) -> None:
        ready = dist.is_initialized()
        world = dist.get_world_size() if ready else int(os.environ.get("WORLD_SIZE", "1"))
        dp_shard = check_degrees(world, dp_replicate, dp_shard, cp, tp)
        for name, value in _ALONE.items():
            os.environ.setdefault(name, value)
        if titan_tools.device_type == "cpu":
            self.device = torch.device("cpu")
        else:
            self.device = torch.device(titan_tools.device_type, int(os.environ["LOCAL_RANK"]))
            torch.accelerator.set_device_index(self.device.index)
        titan_log.setLevel(logging.WARNING)
        logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
        if not ready:
            os.environ.pop("TORCH_NCCL_ASYNC_ERROR_HANDLING", None)  # set anew, with a warning
            utils.init_distributed(CommConfig(init_timeout_seconds=timeout, trace_buf_size=0))
        self.dims = ParallelDims(
            dp_replicate=dp_replicate,
            dp_shard=dp_shard,
            cp=cp,
            tp=tp,
            pp=1,
            ep=1,
            world_size=world,
            spmd_backend="partial_dtensor",
        )
        self.dims.build_mesh()
        utils.set_spmd_backend("partial_dtensor")
        with warnings.catch_warnings():  # of random DTensors on the CPU, of which there are none
            warnings.simplefilter("ignore")
            utils.set_determinism(
                self.dims,
                self.device,
                DebugConfig(seed=seed, deterministic=deterministic),
                distinct_seed_mesh_dims=["batch"],
            )
        self.rank = dist.get_rank()
        self.main = self.rank == 0
        batch = self.dims.get_optional_mesh("batch")
        self.data_ranks = dp_replicate * dp_shard
        self.data_rank = 0 if batch is None else batch.get_local_rank()
        self.loss_scale = float(cp)
        self.precision, self.activation_checkpointing, self.compile = (
            precision,
            activation_checkpointing,
            compile,
        )
        self.bases = SharedBases()
        self.watchdog = Watchdog(heartbeat_timeout)
        if world > 1:
            self.watchdog.start()

    # ---------------------------------------------------------------------------- networks

    def check(self, network: nn.Module) -> None:
        tensor, context = (
            degree if degree > 1 else None for degree in (self.dims.tp, self.dims.cp)
        )
        if tensor or context:
            check(network, tensor=tensor, context=context)

    def frozen(self, network: Denoiser, *, shared: bool = False) -> Denoiser:
        copied = copy.deepcopy(network).requires_grad_(False).eval()
        self._narrow(copied)
        if adapted_parts(copied):
            return self._spread_roles(copied)
        if not shared:
            return self._spread(copied)
        pairs = list(zip(network.modules(), copied.modules(), strict=True))  # before it is wrapped
        self._spread_base(copied)
        self.bases.add(pairs)
        return copied

    def trained(self, network: N) -> N:
        widen(network)
        return self._spread_roles(network) if adapted_parts(network) else self._spread(network)

    def release(self, network: nn.Module) -> None:
        """Does nothing: what was frozen is a copy."""

    def _narrow(self, network: nn.Module) -> None:
        """Holds a network that does not train in the type that it computes in."""
        if self.precision == torch.float32:
            widen(network)
            return
        for parameter in network.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(self.precision)

    def _prepare(self, network: nn.Module) -> None:
        for module in network.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(self.device))
            if isinstance(module, Guided) and module.null is not None:
                module.null = module.null.to(self.device)
            if isinstance(module, RoutedDenoiser):
                module.together = self.data_ranks > 1
        set_precision(network, self.precision)

    def _spread_base(self, network: Denoiser) -> None:
        """Spreads a frozen network so that several roles can call it, in place."""
        if self.compile or self.activation_checkpointing == "selective":
            raise ValueError(
                "low-rank adapters over a shared base do not go with compiled blocks or selective "
                "activation checkpointing; set parallel.compile = False and "
                "parallel.activation_checkpointing to 'none' or "
                "'full', or train full weights"
            )
        self._prepare(network)
        for parameter in network.parameters():
            parameter.data = parameter.data.to(self.device)
        if self.dims.tp_enabled:
            tensor_parallelize(network, self.dims.get_mesh("tp"))
        if self.dims.cp_enabled:
            context_parallelize(network, self.dims.get_mesh("cp"))
        if self.activation_checkpointing != "none":
            checkpoint_units(network)  # under the adapter of the call, as torchtitan's cannot
        sharded = [unit for _, unit in units_of(network)]
        sharded += [network.get_submodule(path) for path in plans_of(network)]
        for module in sharded:
            fully_shard(module, **self._sharding(), reshard_after_forward=True)

    def _spread_roles(self, network: N) -> N:
        """Spreads the adapters within a network, over bases that are shared out once."""
        self._prepare(network)
        for part in adapted_parts(network):
            plain, base = part.base, self.bases.find(part.base)
            if base is None:
                base = self.frozen(plain, shared=True)
            set_precision(base, self.precision)
            part.over(base)
            part.to(self.device)
            tensor, context = (self.dims.get_optional_mesh(name) for name in ("tp", "cp"))
            split_factors(part, tensor, context)
            fully_shard(part, **self._sharding(), reshard_after_forward=True)
        return network

    def _sharding(self) -> dict[str, Any]:
        return {
            "mesh": self.dims.get_activated_mesh(["dp_replicate", "fsdp"]),
            "mp_policy": MixedPrecisionPolicy(
                param_dtype=None if self.precision == torch.float32 else self.precision,
                reduce_dtype=torch.float32,
                cast_forward_inputs=False,
            ),
        }

    def _spread(self, network: N) -> N:
        """Spreads a network over the ranks, in place."""
        self._prepare(network)
        if not any(True for _ in network.parameters()):
            return network
        if self.dims.tp_enabled:
            network.to(self.device)
            mesh = self.dims.get_mesh("tp")
            planned = bool(plans_of(network)) or isinstance(network, Denoiser)
            (tensor_parallelize if planned else replicate)(network, mesh)
        if self.dims.cp_enabled and isinstance(network, FeatureCritic):
            raise ValueError(
                "a FeatureCritic pools the features of this rank's tokens alone under context "
                "parallelism; use MlpCritic, or parallel.cp = 1"
            )
        if self.dims.cp_enabled:
            planned = bool(plans_of(network)) or isinstance(network, Denoiser)
            (context_parallelize if planned else replicate)(network, self.dims.get_mesh("cp"))
        units = [self._wrap(network, name, unit) for name, unit in units_of(network)]
        for unit in units:
            fully_shard(unit, **self._sharding())
        # the root too is sharded again after a forward: rollouts without a gradient would leave it
        # gathered, and what is said of its parameters in between would be lost
        fully_shard(network, **self._sharding(), reshard_after_forward=True)
        return network

    def _wrap(self, network: nn.Module, name: str, unit: nn.Module) -> nn.Module:
        if self.activation_checkpointing != "none":
            policy = FullAC if self.activation_checkpointing == "full" else SelectiveAC
            unit = policy.Config().build()._wrap_block(unit, base_fqn=name)
            parent, _, leaf = name.rpartition(".")
            network.get_submodule(parent).register_module(leaf, unit)
        if self.compile:
            unit.compile()
        return unit

    # -------------------------------------------------------------------------- optimization

    def optimizers(self, recipe: AdamRecipe, network: nn.Module) -> Optimizers:
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

    def schedule(self, optimizers: Optimizers, recipe: AdamRecipe, updates: int) -> Rates:
        return ContainerRates(
            LRSchedulersContainer(
                cast(OptimizersContainer, optimizers),
                lambda update: recipe.factor(update / max(updates, 1)),
            )
        )

    def clip(self, network: nn.Module, largest: float) -> Tensor:
        for module in network.modules():
            if isinstance(module, RoutedDenoiser) and module.together:
                drop_unused(module, self.device)
        return utils.clip_grad_norm_(network.parameters(), largest, foreach=True)

    # -------------------------------------------------------------------------- agreement

    def mean(self, value: Tensor) -> Tensor:
        return mean_over_ranks(value, self.device)

    def any(self, flag: bool) -> bool:
        return on_any_rank(flag, self.device)

    def agreed(self) -> AbstractContextManager[None]:
        return agreed(self.rank)

    def failed_rank(self) -> str:
        return self.watchdog.failed_rank() if dist.is_initialized() else ""

    def close(self, error: BaseException | None = None) -> None:
        if not dist.is_initialized():  # left already
            return
        if dist.get_world_size() > 1:
            if error is None:
                dist.barrier()
            self.watchdog.stop(
                "" if error is None else " ".join(str(error).split()) or type(error).__name__
            )
        if error is None:
            dist.destroy_process_group()

    # ------------------------------------------------------------------------- checkpoints

    def tensors(self, network: nn.Module) -> dict[str, Tensor]:
        return full_tensors(network)

    def restore(self, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        restore_permuted(network, tensors)

    def moments(self, network: nn.Module, optimizers: Optimizers) -> dict[str, dict[str, Tensor]]:
        return full_moments(network, moments_of(network, optimizers))

    def blank_moments(
        self, network: nn.Module, optimizers: Optimizers
    ) -> dict[str, dict[str, Tensor]]:
        return full_moments(network, blank_moments(network))

    def restore_moments(
        self,
        network: nn.Module,
        optimizers: Optimizers,
        moments: Mapping[str, Mapping[str, Tensor]],
    ) -> None:
        put_moments(network, optimizers, permuted_moments(network, moments))

    def whole(self, network: nn.Module) -> dict[str, Tensor]:
        return {
            name: (value.full_tensor() if isinstance(value, DTensor) else value).cpu()
            for name, value in self.tensors(network).items()
        }


_ALONE = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",
}
"""What torchrun would have set, for a single process without it."""
