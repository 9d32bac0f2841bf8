"""Footprints: what one network costs, measured on the meta device.

Nothing is computed and no weight is loaded: parameters, operations and live bytes follow from
shapes alone.
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

from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.routers import RoutedDenoiser
from pdmd.distillation.adapters import AdaptedDenoiser, checkpoint_contexts
from pdmd.planning.recording import Course, FusedAttention, Recorder, Recording, fit
from pdmd.planning.units import Split, heads_of, split_of, units_of
from pdmd.typing import Condition, repeat_condition

__all__ = ["Footprint", "Group", "measure"]

_BATCHES = (2, 4)  # a dimension of one has no stride of its own, which changes what is copied


@dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters that are gathered together.

    Attributes:
        whole: Parameters that tensor parallelism repeats on every rank.
        split: Parameters that it splits.
    """

    whole: int
    split: int

    def local(self, tp: int) -> float:
        """Returns the parameters of one tensor-parallel rank."""
        return self.whole + self.split / tp


@dataclass(frozen=True, kw_only=True, eq=False)
class Footprint:
    """What one network costs.

    Attributes:
        root: Its parameters outside the units.
        units: Those of every unit.
        trained: Whether it was measured with its backward pass.
        buffers: Bytes of its buffers.
        quiet: Live bytes in the course of a forward pass without gradient.
        recorded: Those of a forward and backward pass; the gradients are made on the way.
        flops: Operations of one forward pass for one sample.
        backward_flops: Those of its backward pass, recomputation apart.
        recomputed_flops: Those of recomputing the units.
        attention: Bytes of query, key, value and output in all units, for one sample.
        reduced: Bytes of the outputs of row-wise layers, for one sample.
        entering: Bytes of the inputs of column-wise layers, for one sample.
        tokens: The length of the units' sequence; 0 without units.
        heads: Attention heads; 0 without attention.
        latents: Bytes of one sample in float32.
        condition: Bytes of one condition.
        under: Of an adapter, the units of the frozen network that it runs over. They are held as
            the teacher's, and gathered whenever the adapter is called.
        under_root: That network's parameters outside the units.
    """

    root: Group
    units: tuple[Group, ...]
    trained: bool
    buffers: int
    quiet: Course
    recorded: Course
    flops: float
    backward_flops: float
    recomputed_flops: float
    attention: float
    reduced: float
    entering: float
    tokens: int
    heads: int
    latents: int
    condition: int
    under: tuple[Group, ...] = ()
    under_root: Group = Group(whole=0, split=0)

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return sum(g.whole + g.split for g in (self.root, *self.units))

    def local(self, tp: int) -> float:
        """Returns the parameters of one tensor-parallel rank, before sharding."""
        return sum(g.local(tp) for g in (self.root, *self.units))

    def largest(self, tp: int) -> float:
        """Returns the parameters of the largest unit; of all where there are no units."""
        units = self.under or self.units
        return max((g.local(tp) for g in units), default=self.root.local(tp))

    def reduced_at_once(self, tp: int) -> float:
        """Returns the parameters whose gradients are reduced together: a unit's, an adapter's."""
        return self.local(tp) if self.under else self.largest(tp)

    def gathered(self, tp: int) -> tuple[float, float]:
        """Returns what one call gathers: the parameters of all units, and those outside."""
        units = sum(g.local(tp) for g in (*self.units, *self.under))
        return units, self.root.local(tp) + self.under_root.local(tp)


def measure(
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
        denoiser: The network, on any device; it is left as it is. Of one that routes, or wraps
            one that does, the first network's work counts and the parameters of all.
        condition: A condition of batch size 1, or ``None``.
        train: Whether to measure its training too; without, the recorded course is the quiet one.
        steps: Evaluations in a row that the backward pass goes through.
        dtype: What it computes in.
        activation_checkpointing: Whether the units keep their inputs alone and are computed again.

    Returns:
        The footprint.
    """
    for module in denoiser.modules():
        if isinstance(module, RoutedDenoiser):
            return _routed(module, condition, train, steps, dtype, activation_checkpointing)
    network, device = copy.deepcopy(denoiser), "cpu"
    if isinstance(network, AdaptedDenoiser):
        network.use_base(copy.deepcopy(network.base).to("meta").to(dtype))
    if any(True for _ in network.parameters()):  # a closed form runs as it is
        network, device = network.to("meta").to(dtype), "meta"
    else:
        train = False
    network.requires_grad_(train).train(train)
    carrier = network.base if isinstance(network, AdaptedDenoiser) else network
    units, split = units_of(carrier), split_of(carrier)
    if condition is not None:
        condition = _placed(condition, device)

    marked = _marked(network, carrier, split)

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

    def record(batch: int, *, backward: bool, again: bool, chain: int) -> Recording:
        recorder = Recorder(list(units.values()), split)
        with torch.set_grad_enabled(backward), _recomputed(units if again else {}):
            forward = chained(batch, chain)
            return recorder.run(network, forward, backward=backward, split=marked)

    few, many = _BATCHES
    with torch.no_grad():
        chained(few, 1)()  # what a network makes once and keeps is made before it counts
    quiet = record(few, backward=False, again=False, chain=1)
    course = fit(quiet, record(many, backward=False, again=False, chain=1), _BATCHES)
    recorded, backward_flops, recomputed = course, 0.0, 0
    if train:
        first = record(few, backward=True, again=activation_checkpointing, chain=steps)
        second = record(many, backward=True, again=activation_checkpointing, chain=steps)
        recorded = fit(first, second, _BATCHES)
        recomputed = quiet.unit_flops if activation_checkpointing else 0
        backward_flops = first.flops[1] / steps - recomputed
    groups = tuple(_group(list(unit.parameters()), marked) for unit in units.values())
    everything = _group(list(carrier.parameters()), marked)
    root = Group(
        whole=everything.whole - sum(g.whole for g in groups),
        split=everything.split - sum(g.split for g in groups),
    )
    own: dict[str, Any] = {"root": root, "units": groups}
    if carrier is not network:
        factors = _group(list(network.parameters()), marked)
        own = {"root": factors, "units": (), "under": groups, "under_root": root}
    size = 1
    for n in denoiser.latent_shape:
        size *= n
    return Footprint(
        **own,
        trained=train,
        buffers=sum(b.nbytes for b in network.buffers()),
        quiet=course,
        recorded=recorded,
        flops=quiet.flops[0] / few,
        backward_flops=backward_flops / few,
        recomputed_flops=recomputed / few,
        attention=quiet.attention / few,
        reduced=quiet.reduced / few,
        entering=quiet.entering / few,
        tokens=quiet.tokens,
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
        measure(
            part,  # type: ignore[arg-type]
            condition,
            train=train and not i,
            steps=steps,
            dtype=dtype,
            activation_checkpointing=activation_checkpointing,
        )
        for i, part in enumerate(denoiser.denoisers)
    ]
    return dataclasses.replace(
        parts[0],
        root=Group(whole=sum(p.root.whole for p in parts), split=sum(p.root.split for p in parts)),
        units=tuple(unit for p in parts for unit in p.units),
        under=tuple(unit for p in parts for unit in p.under),
        buffers=sum(p.buffers for p in parts),
    )


def _marked(network: nn.Module, carrier: nn.Module, split: Split) -> set[int]:
    """Returns the parameters that tensor parallelism splits, factors beside its layers too."""
    marked = {id(layer.weight) for layer in (*split.column_wise, *split.row_wise)}
    marked |= {id(layer.bias) for layer in split.column_wise if layer.bias is not None}
    if isinstance(network, AdaptedDenoiser):
        layers = dict(carrier.named_modules())
        for path, factors in network.factors().items():
            if layers[path] in split.column_wise:
                marked.add(id(factors.lora_B.weight))
            elif layers[path] in split.row_wise:
                marked.add(id(factors.lora_A.weight))
    return marked


def _group(parameters: list[nn.Parameter], marked: set[int]) -> Group:
    split = sum(p.numel() for p in parameters if id(p) in marked)
    return Group(whole=sum(p.numel() for p in parameters) - split, split=split)


def _placed(condition: Any, device: str) -> Any:
    """Moves a condition. Masks become full and keep their contents: networks may ask for them."""
    from tensordict import TensorDict

    entries = {
        key: torch.ones_like(value, device="cpu")
        if value.dtype == torch.bool
        else value.to(device)
        for key, value in condition.items(True, True)
    }
    return TensorDict(entries, batch_size=condition.batch_size)


def _size(condition: Condition) -> int:
    if condition is None:
        return 0
    return sum(value.nbytes for value in condition.values(True, True) if isinstance(value, Tensor))


@contextmanager
def _recomputed(units: dict[str, nn.Module]) -> Iterator[None]:
    """Lets modules keep their inputs alone, and compute again what their backward pass needs."""

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
