"""Placement on a device mesh: parallelizes and shards networks.

The order is tensor parallelism, context parallelism, activation checkpointing, compilation of each
unit, ``fully_shard`` of each unit and of the whole network. All of it happens on the meta device;
then each rank allocates its shards and reads them, tensor by tensor, so that none ever holds a
network whole.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import torch
from torch import nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)

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
from pdmd.distributed.activation_checkpointing import checkpoint_units, restore_counts
from pdmd.distributed.compilation import compile_units
from pdmd.distributed.materialization import materialize
from pdmd.distributed.placement import Placement, set_precision, store_in
from pdmd.distributed.shared_bases import SharedBases, split_factors
from pdmd.distributed.titan_parts import FullAC, ParallelDims, SelectiveAC
from pdmd.distributed.weight_sources import hollow, is_outline, outline
from pdmd.objectives.critics import FeatureCritic
from pdmd.teachers.guided import Guided

__all__ = ["ActivationCheckpointing", "MeshPlacement"]

N = TypeVar("N", bound=nn.Module)
ActivationCheckpointing = Literal["none", "full", "selective"]


class MeshPlacement(Placement):
    """Shards and parallelizes networks over a mesh.

    Args:
        dims: The mesh.
        device: Device of this rank.
        precision: The dtype in which networks compute and are gathered; trainable parameters and
            gradient reduction are float32.
        activation_checkpointing: What the backward pass recomputes: ``none``, every unit
            (``full``), or all but the costly operations (``selective``).
        compile: Whether to compile every unit.
        offload_bases: Whether the base of adapters in training is kept in CPU memory, where no
            placed teacher is.
    """

    in_place = False

    def __init__(
        self,
        dims: ParallelDims,
        device: torch.device,
        precision: torch.dtype,
        *,
        activation_checkpointing: ActivationCheckpointing,
        compile: bool,
        offload_bases: bool = False,
    ) -> None:
        self.dims, self.device, self.precision = dims, device, precision
        self.activation_checkpointing, self.compile = activation_checkpointing, compile
        self.bases, self.offload_bases = SharedBases(), offload_bases
        batch = dims.get_optional_mesh("batch")
        self._batch_is_split = batch is not None and batch.size() > 1

    def check(self, network: nn.Module) -> None:
        tensor, context = (
            degree if degree > 1 else None for degree in (self.dims.tp, self.dims.cp)
        )
        if tensor or context:
            check(network, tensor=tensor, context=context)

    def outline(self, network: N) -> N:
        return network if is_outline(network) else outline(network)

    def frozen(
        self,
        network: Denoiser,
        *,
        shared: bool = False,
        offload: bool = False,
        precision: torch.dtype | None = None,
    ) -> Denoiser:
        precision = precision or self.precision
        known = self.bases.find(network)
        if known is not None:
            return known
        copied = outline(network).requires_grad_(False).eval()
        store_in(copied, precision)
        if adapted_parts(copied):
            return self._shard_roles(copied, offload, precision, base_offload=offload)
        if not shared:
            return self._shard(copied, offload, precision)
        pairs = list(zip(network.modules(), copied.modules(), strict=True))  # before wrapping
        self._shard_base(copied, offload, precision)
        materialize(copied, self.device, shards=self._home(offload))
        self.bases.add(pairs)
        return copied

    def trained(
        self,
        network: N,
        *,
        offload: bool = False,
        precision: torch.dtype | None = None,
        storage: torch.dtype = torch.float32,
    ) -> N:
        precision = precision or self.precision
        hollow(network)
        store_in(network, storage)
        if adapted_parts(network):
            bases = self.offload_bases
            return self._shard_roles(network, offload, precision, base_offload=bases)
        return self._shard(network, offload, precision)

    def release(self, network: nn.Module) -> None:
        """Does nothing: a frozen network is a copy."""

    def _prepare(self, network: nn.Module, precision: torch.dtype) -> None:
        for module in network.modules():
            if isinstance(module, Denoiser):
                module.execution_device = self.device
            for name, buffer in module.named_buffers(recurse=False):
                if not buffer.is_meta:
                    setattr(module, name, buffer.to(self.device))
            if isinstance(module, Guided) and module.null is not None:
                module.null = module.null.to(self.device)
            if isinstance(module, RoutedDenoiser):
                module.collective = self._batch_is_split
        set_precision(network, precision)

    def _shard_base(self, network: Denoiser, offload: bool, precision: torch.dtype) -> None:
        """Shards a frozen network that several roles share, in place."""
        if self.activation_checkpointing == "selective":
            raise ValueError(
                "low-rank adapters over a shared base do not support selective activation "
                "checkpointing; set parallel.activation_checkpointing to 'none' or 'full', or "
                "train full weights"
            )
        self._prepare(network, precision)
        if self.dims.tp_enabled:
            tensor_parallelize(network, self.dims.get_mesh("tp"))
        if self.dims.cp_enabled:
            context_parallelize(network, self.dims.get_mesh("cp"))
        if self.compile:
            compile_units(network)
        if self.activation_checkpointing != "none":
            checkpoint_units(network)  # torchtitan's would not recompute under the adapter
        sharded = [unit for _, unit in units_of(network)]
        sharded += [network.get_submodule(path) for path in plans_of(network)]
        for module in sharded:
            fully_shard(module, **self._sharding(offload, precision), reshard_after_forward=True)

    def _shard_roles(
        self, network: N, offload: bool, precision: torch.dtype, *, base_offload: bool
    ) -> N:
        """Shards the adapters in a network, over bases that are sharded once."""
        self._prepare(network, precision)
        for part in adapted_parts(network):
            plain, base = part.base, self.bases.find(part.base)
            if base is None:
                base = self.frozen(plain, shared=True, offload=base_offload, precision=precision)
            set_precision(base, precision)
            part.use_base(base)
            tensor, context = (self.dims.get_optional_mesh(name) for name in ("tp", "cp"))
            split_factors(part, tensor, context)
            fully_shard(part, **self._sharding(offload, precision), reshard_after_forward=True)
            materialize(part, self.device, shards=self._home(offload))
        return network

    def _home(self, offload: bool) -> torch.device:
        """Returns where a network's shards are kept."""
        return torch.device("cpu") if offload else self.device

    def _sharding(self, offload: bool, precision: torch.dtype) -> dict[str, Any]:
        pinned = self.device.type != "cpu"
        return {
            "offload_policy": CPUOffloadPolicy(pin_memory=pinned) if offload else OffloadPolicy(),
            "mesh": self.dims.get_activated_mesh(["dp_replicate", "fsdp"]),
            "mp_policy": MixedPrecisionPolicy(
                param_dtype=None if precision == torch.float32 else precision,
                reduce_dtype=torch.float32,
                cast_forward_inputs=False,
            ),
        }

    def _shard(self, network: N, offload: bool, precision: torch.dtype) -> N:
        """Parallelizes and shards a network, in place."""
        self._prepare(network, precision)
        if not any(True for _ in network.parameters()):
            return network
        if self.dims.tp_enabled:
            mesh = self.dims.get_mesh("tp")
            planned = bool(plans_of(network)) or isinstance(network, Denoiser)
            (tensor_parallelize if planned else replicate)(network, mesh)
        if self.dims.cp_enabled and isinstance(network, FeatureCritic):
            raise ValueError(
                "a FeatureCritic does not support context parallelism, under which it would pool "
                "this rank's tokens only; use MlpCritic, or parallel.cp = 1"
            )
        if self.dims.cp_enabled:
            planned = bool(plans_of(network)) or isinstance(network, Denoiser)
            (context_parallelize if planned else replicate)(network, self.dims.get_mesh("cp"))
        units = [self._wrap(network, name, unit) for name, unit in units_of(network)]
        sharding = self._sharding(offload, precision)
        for unit in units:
            fully_shard(unit, **sharding)
        for part in _parts(network):  # so that a call gathers the network that it evaluates
            fully_shard(part, **sharding, reshard_after_forward=True)
        # The root too is resharded after forward: rollouts without a gradient would leave it
        # gathered, and updates of its parameters in between would be lost.
        fully_shard(network, **sharding, reshard_after_forward=True)
        materialize(network, self.device, shards=self._home(offload))
        return network

    def _wrap(self, network: nn.Module, name: str, unit: nn.Module) -> nn.Module:
        if self.activation_checkpointing != "none":
            policy = FullAC if self.activation_checkpointing == "full" else SelectiveAC
            unit = policy.Config().build()._wrap_block(unit, base_fqn=name)
            if self.dims.cp_enabled and not self.compile:  # a compiled unit keeps its own counts
                restore_counts(unit)
            parent, _, leaf = name.rpartition(".")
            network.get_submodule(parent).register_module(leaf, unit)
        if self.compile:
            unit.compile()
        return unit


def _parts(network: nn.Module) -> list[nn.Module]:
    """Returns the networks behind routers, the innermost first."""
    routed = [module for module in network.modules() if isinstance(module, RoutedDenoiser)]
    parts = {id(part): part for module in reversed(routed) for part in module.denoisers}
    return list(parts.values())
