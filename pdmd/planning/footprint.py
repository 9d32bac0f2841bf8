"""Footprints: parameters, FLOPs and activation memory of one network, on the meta device.

No value is computed and no weight is loaded: everything follows from shapes.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pdmd.arguments import checked
from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.routers import RoutedDenoiser
from pdmd.distillation.adapters import AdaptedDenoiser, checkpoint_contexts
from pdmd.planning.recording import FusedAttention, MemoryRecorder, MemoryTimeline, Recording, fit
from pdmd.planning.units import Split, heads_of, split_of, units_of
from pdmd.teachers.conditioning.text_lengths import with_lengths
from pdmd.typing import Condition, repeat_condition

__all__ = ["Footprint", "ParameterGroup", "measure_footprint"]

_BATCHES = (2, 4)  # a batch of one has other strides, which changes the copies


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that are all-gathered together.

    Attributes:
        whole: Parameters that tensor parallelism replicates.
        split: Parameters that tensor parallelism shards.
    """

    whole: int
    split: int

    def local(self, tp: int) -> float:
        """Returns the parameters of one tensor-parallel rank."""
        return self.whole + self.split / tp


@dataclass(frozen=True, kw_only=True, eq=False)
class Footprint:
    """Parameters, FLOPs and memory of one network.

    Attributes:
        root: Parameters outside the units.
        units: Parameters of each unit.
        trained: Whether the backward pass was measured too.
        buffers: Bytes of buffers.
        inference_memory: Live bytes during a forward pass without gradient.
        training_memory: Live bytes during a forward and backward pass, gradients included.
        flops: FLOPs of one forward pass for one sample.
        backward_flops: FLOPs of its backward pass, without recomputation.
        recomputed_flops: FLOPs of recomputing the units.
        attention: Bytes of query, key, value and output in all units, for one sample.
        row_outputs: Bytes of the outputs of row-wise layers, for one sample.
        column_inputs: Bytes of the inputs of column-wise layers, for one sample.
        tokens: The length of the units' sequence; 0 without units.
        heads: Attention heads; 0 without attention.
        latents: Bytes of one sample in float32.
        condition: Bytes of one condition.
        base_units: For an adapter, the units of its frozen base network. Their memory counts as
            the teacher's; they are gathered whenever the adapter is called.
        base_root: For an adapter, the base network's parameters outside the units.
        idle: For a routed denoiser, the parameters of the networks that a call does not evaluate.
    """

    root: ParameterGroup
    units: tuple[ParameterGroup, ...]
    trained: bool
    buffers: int
    inference_memory: MemoryTimeline
    training_memory: MemoryTimeline
    flops: float
    backward_flops: float
    recomputed_flops: float
    attention: float
    row_outputs: float
    column_inputs: float
    tokens: int
    heads: int
    latents: int
    condition: int
    base_units: tuple[ParameterGroup, ...] = ()
    base_root: ParameterGroup = ParameterGroup(whole=0, split=0)
    idle: tuple[ParameterGroup, ...] = ()

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return sum(g.whole + g.split for g in (self.root, *self.units, *self.idle))

    def local(self, tp: int) -> float:
        """Returns the parameters of one tensor-parallel rank, before sharding."""
        return self.evaluated(tp) + sum(g.local(tp) for g in self.idle)

    def evaluated(self, tp: int) -> float:
        """Returns those of the network that a call evaluates."""
        return sum(g.local(tp) for g in (self.root, *self.units))

    def local_base(self, tp: int) -> float:
        """Returns an adapter's base parameters of one tensor-parallel rank, before sharding."""
        return sum(g.local(tp) for g in (self.base_root, *self.base_units))

    def largest(self, tp: int) -> float:
        """Returns the parameters of the largest unit; of all where there are no units."""
        units = self.base_units or self.units
        return max((g.local(tp) for g in units), default=self.root.local(tp))

    def reduced_together(self, tp: int) -> float:
        """Returns the parameters whose gradients are reduced together: a unit's, an adapter's."""
        return self.evaluated(tp) if self.base_units else self.largest(tp)

    def gathered(self, tp: int) -> tuple[float, float]:
        """Returns the parameters that one call gathers: of all units, and outside them."""
        units = sum(g.local(tp) for g in (*self.units, *self.base_units))
        return units, self.root.local(tp) + self.base_root.local(tp)


@checked
def measure_footprint(
    denoiser: Denoiser,
    condition: Condition = None,
    *,
    train: bool,
    steps: int = 1,
    dtype: torch.dtype = torch.float32,
    activation_checkpointing: bool = False,
) -> Footprint:
    """Measures a denoiser on the meta device.

    Args:
        denoiser: The network, on any device; it is not modified. Of a routed denoiser a call
            evaluates one network: FLOPs, activations and gathered parameters are those of its
            first, parameters those of all.
        condition: A condition of batch size 1, or ``None``.
        train: Whether to measure the backward pass too; if not, ``training_memory`` equals
            ``inference_memory``.
        steps: Consecutive evaluations that the backward pass goes through.
        dtype: The dtype of the computation.
        activation_checkpointing: Whether the units keep only their inputs and are recomputed.

    Returns:
        The footprint.
    """
    for module in denoiser.modules():
        if isinstance(module, RoutedDenoiser):
            return _routed(module, condition, train, steps, dtype, activation_checkpointing)
    network, device = copy.deepcopy(denoiser), "cpu"
    if isinstance(network, AdaptedDenoiser):
        network.use_base(copy.deepcopy(network.base).to("meta").to(dtype))
    if any(True for _ in network.parameters()):  # a closed-form denoiser runs on the CPU
        network, device = network.to("meta").to(dtype), "meta"
    else:
        train = False
    network.requires_grad_(train).train(train)
    carrier = network.base if isinstance(network, AdaptedDenoiser) else network
    units, split = units_of(carrier), split_of(carrier)
    if condition is not None:
        condition = _placed(condition, device)

    sharded = _sharded(network, carrier, split)

    def chained(batch: int, chain: int) -> Callable[[], Tensor]:
        x = torch.zeros(batch, *denoiser.latent_shape, device=device, dtype=dtype)
        t = torch.full((batch,), 0.5, device=device, dtype=torch.float64)
        rows = repeat_condition(condition, batch)

        def forward() -> Tensor:
            state = x
            for _ in range(chain):
                state = state + network(state, t, rows).value
            return state

        return forward

    def record(batch: int, *, backward: bool, checkpointing: bool, chain: int) -> Recording:
        recorder = MemoryRecorder(list(units.values()), split)
        with torch.set_grad_enabled(backward), _recomputed(units if checkpointing else {}):
            forward = chained(batch, chain)
            return recorder.run(network, forward, backward=backward, split=sharded)

    few, many = _BATCHES
    with torch.no_grad():
        chained(few, 1)()  # fill the network's caches first
    forward = record(few, backward=False, checkpointing=False, chain=1)
    timeline = fit(forward, record(many, backward=False, checkpointing=False, chain=1), _BATCHES)
    training_memory, backward_flops, recomputed = timeline, 0.0, 0
    if train:
        first = record(few, backward=True, checkpointing=activation_checkpointing, chain=steps)
        second = record(many, backward=True, checkpointing=activation_checkpointing, chain=steps)
        training_memory = fit(first, second, _BATCHES)
        recomputed = forward.unit_flops if activation_checkpointing else 0
        backward_flops = first.flops[1] / steps - recomputed
    groups = tuple(_group(list(unit.parameters()), sharded) for unit in units.values())
    everything = _group(list(carrier.parameters()), sharded)
    root = ParameterGroup(
        whole=everything.whole - sum(g.whole for g in groups),
        split=everything.split - sum(g.split for g in groups),
    )
    own: dict[str, Any] = {"root": root, "units": groups}
    if carrier is not network:
        factors = _group(list(network.parameters()), sharded)
        own = {"root": factors, "units": (), "base_units": groups, "base_root": root}
    size = 1
    for n in denoiser.latent_shape:
        size *= n
    return Footprint(
        **own,
        trained=train,
        buffers=sum(b.nbytes for b in network.buffers()),
        inference_memory=timeline,
        training_memory=training_memory,
        flops=forward.flops[0] / few,
        backward_flops=backward_flops / few,
        recomputed_flops=recomputed / few,
        attention=forward.attention / few,
        row_outputs=forward.row_outputs / few,
        column_inputs=forward.column_inputs / few,
        tokens=forward.tokens,
        heads=heads_of(carrier),
        latents=4 * size,
        condition=_size(condition),
    )


def _routed(
    denoiser: RoutedDenoiser,
    condition: Condition,
    train: bool,
    steps: int,
    dtype: torch.dtype,
    activation_checkpointing: bool,
) -> Footprint:
    parts = [
        measure_footprint(
            part,  # type: ignore[arg-type]
            condition,
            train=train and not i,
            steps=steps,
            dtype=dtype,
            activation_checkpointing=activation_checkpointing,
        )
        for i, part in enumerate(denoiser.denoisers)
    ]
    others = (group for p in parts[1:] for group in (p.root, *p.units, *p.idle))
    return dataclasses.replace(
        parts[0], idle=(*parts[0].idle, *others), buffers=sum(p.buffers for p in parts)
    )


def _sharded(network: nn.Module, carrier: nn.Module, split: Split) -> set[int]:
    """Returns the parameters that tensor parallelism shards, low-rank factors included."""
    sharded = {id(layer.weight) for layer in (*split.column_wise, *split.row_wise)}
    sharded |= {id(layer.bias) for layer in split.column_wise if layer.bias is not None}
    if isinstance(network, AdaptedDenoiser):
        layers = dict(carrier.named_modules())
        for path, factors in network.factors().items():
            if layers[path] in split.column_wise:
                sharded.add(id(factors.lora_B.weight))
            elif layers[path] in split.row_wise:
                sharded.add(id(factors.lora_A.weight))
    return sharded


def _group(parameters: list[nn.Parameter], sharded: set[int]) -> ParameterGroup:
    split = sum(p.numel() for p in parameters if id(p) in sharded)
    return ParameterGroup(whole=sum(p.numel() for p in parameters) - split, split=split)


def _placed(condition: Any, device: str) -> Any:
    """Moves a condition; masks become all true, with lengths, so that networks need not read."""
    from tensordict import TensorDict

    fields = {
        key: torch.ones_like(value, device="cpu")
        if value.dtype == torch.bool
        else value.to(device)
        for key, value in condition.items(True, True)
        if isinstance(value, Tensor)  # texts are as long as their padding
    }
    whole = with_lengths(TensorDict(fields, batch_size=condition.batch_size))
    return whole.to(device)


def _size(condition: Condition) -> int:
    if condition is None:
        return 0
    return sum(value.nbytes for value in condition.values(True, True) if isinstance(value, Tensor))


@contextmanager
def _recomputed(units: dict[str, nn.Module]) -> Iterator[None]:
    """Checkpoints the units: they keep their inputs and are recomputed in the backward pass."""

    def contexts() -> tuple[Any, Any]:
        return nullcontext(), FusedAttention(lambda *tensors: None)

    for unit in units.values():
        unit.forward = partial(  # type: ignore[method-assign]
            checkpoint,
            unit.forward,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=partial(checkpoint_contexts, contexts),
        )
    try:
        yield
    finally:
        for unit in units.values():
            del unit.forward
