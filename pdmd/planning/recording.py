r"""Live bytes after every operation of a computation, recorded on the meta device.

A storage is alive from the operation that allocates it until its last reference is dropped. Live
bytes are affine in the batch size, so two recordings of one computation, at two batch sizes,
determine them at any batch size.

Bytes are counted by how parallelism shards them. Inside a network's units, tensor parallelism
shards the activations between a column-wise and a row-wise layer. The weights of both are marked
as sharded, and the mark propagates: a matrix product is sharded if *exactly one* of its factors is
(the product over the sharded dimension is whole again), the result of any other operation if *any*
of its inputs is. The same rule applies to the backward pass.
"""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from pdmd.planning.units import Split

__all__ = ["KINDS", "MemoryTimeline", "FusedAttention", "MemoryRecorder", "Recording", "fit"]

KINDS = ("outside", "units", "units_split", "gradients", "gradients_split")
"""The kinds of live bytes: outside the units; inside the units, replicated or sharded by tensor
parallelism; gradients of parameters, replicated or sharded."""

_aten = torch.ops.aten
_PRODUCTS = {_aten.mm.default: (0, 1), _aten.addmm.default: (1, 2)}
_FUSED = _aten._scaled_dot_product_flash_attention_for_cpu
_FUSED_BACKWARD = _aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True, kw_only=True, eq=False)
class MemoryTimeline:
    """Live bytes during a computation, for any batch size.

    Attributes:
        fixed: Bytes independent of the batch size, with shape ``(moments, kinds)``.
        slope: Bytes per sample, with shape ``(moments, kinds)``.
        forward_end: The moment at which the forward pass ended; the last without a backward pass.
    """

    fixed: np.ndarray
    slope: np.ndarray
    forward_end: int

    def bytes(self, batch: float, weights: Sequence[float]) -> np.ndarray:
        """Returns the weighted live bytes at every moment.

        Args:
            batch: Batch size.
            weights: The weight of a byte of each kind.

        Returns:
            Bytes, with shape ``(moments,)``.
        """
        return (self.fixed + batch * self.slope) @ np.asarray(weights, dtype=float)


@dataclass(frozen=True, kw_only=True, eq=False)
class Recording:
    """One recorded computation.

    Attributes:
        bytes: Bytes alive after every allocation or release, by kind, with shape
            ``(moments, kinds)``.
        forward_end: The moment at which the forward pass ended.
        flops: FLOPs of the forward and of the backward pass; recomputation counts as backward.
        unit_flops: FLOPs of the units' forward pass.
        attention: Bytes of query, key, value and output of the units' self-attention, forward.
        row_outputs: Bytes of the outputs of row-wise layers, forward.
        column_inputs: Bytes of the distinct inputs of column-wise layers, forward.
        tokens: The sequence length in the units; 0 without units.
    """

    bytes: np.ndarray
    forward_end: int
    flops: tuple[int, int]
    unit_flops: int
    attention: int
    row_outputs: int
    column_inputs: int
    tokens: int


def fit(few: Recording, many: Recording, batches: tuple[int, int]) -> MemoryTimeline:
    """Fits live bytes, affine in the batch size, to two recordings.

    A network that loops over its samples runs more operations for a larger batch, so moments do
    not correspond; then only the peaks of the forward and of the backward pass are kept.

    Args:
        few: The recording of the smaller batch.
        many: The recording of the larger batch.
        batches: The two batch sizes.
    """
    if few.bytes.shape != many.bytes.shape or few.forward_end != many.forward_end:
        few, many = _peaks(few), _peaks(many)
    slope = (many.bytes - few.bytes) / (batches[1] - batches[0])
    return MemoryTimeline(
        fixed=few.bytes - batches[0] * slope, slope=slope, forward_end=few.forward_end
    )


def _peaks(recording: Recording) -> Recording:
    """Keeps four moments: the peak of the forward pass, its end, and the peaks of the backward
    pass without and with gradients.
    """
    live, forward_end = recording.bytes, recording.forward_end
    first_gradient = len(KINDS) - 2
    back = live[forward_end:]
    kept = [
        int(live[: forward_end + 1].sum(1).argmax()),
        forward_end,
        forward_end + int(back[:, :first_gradient].sum(1).argmax()),
        forward_end + int(back.sum(1).argmax()),
    ]
    return dataclasses.replace(recording, bytes=live[kept], forward_end=1)


class MemoryRecorder(TorchDispatchMode):
    """Records live storages, FLOPs and the tensors that ranks communicate.

    Storages allocated by a backward pass count as inside the units, where nearly all of them are.

    Args:
        units: The network's units.
        split: The layers that tensor parallelism shards.
    """

    def __init__(self, units: Sequence[nn.Module], split: Split) -> None:
        super().__init__()
        self._units, self._split = units, split
        self._log: list[tuple[int, int]] = []  # (storage's number, bytes allocated or released)
        self._numbers: dict[int, int] = {}  # of live storages, by id
        self._inside: list[bool] = []
        self._marked: list[bool] = []
        self._existing: dict[int, tuple[Any, bool]] = {}  # earlier ones, marked or not
        self._depth = 0
        self._flops = [0, 0]
        self._unit_flops = 0
        self._forward_end: int | None = None
        self.attention = self.row_outputs = self.column_inputs = self.tokens = 0

    def run(
        self,
        network: nn.Module,
        forward: Callable[[], Tensor],
        *,
        backward: bool,
        split: Collection[int],
    ) -> Recording:
        """Runs and records a forward pass, and the backward pass of its output's sum.

        Args:
            network: The network, whose gradients are ``None``.
            forward: Computes the output.
            backward: Whether to run backward too.
            split: The parameters that tensor parallelism shards, by ``id``.
        """
        enabled = gc.isenabled()
        gc.collect()
        gc.disable()  # collections would release cycles at arbitrary moments
        layers = (*self._split.column_wise, *self._split.row_wise)
        base_weights = (layer.weight for layer in layers)  # an adapter does not own its base
        for tensor in (*network.parameters(), *network.buffers(), *base_weights):
            self._register(tensor, tensor.ndim > 1 and id(tensor) in split)
        try:
            with self._hooks(), self:
                with FusedAttention(self._record_attention):
                    out = forward()
                self._forward_end = len(self._log)
                if backward:
                    out.backward(torch.ones_like(out))
            gradients = {
                self._numbers[id(p.grad.untyped_storage())]
                for p in network.parameters()
                if p.grad is not None
            }
            return self._recording(gradients)
        finally:
            for parameter in network.parameters():
                parameter.grad = None
            if enabled:
                gc.enable()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        backward = self._forward_end is not None
        flops = _flops(func, args, kwargs, out)
        self._flops[backward] += flops
        if self._depth and not backward:
            self._unit_flops += flops
        marks = [self._mark_of(tensor) for tensor in _tensors((args, kwargs))]
        if func in _PRODUCTS:
            left, right = (self._mark_of(args[i]) for i in _PRODUCTS[func])
            mark = left != right
        else:
            mark = any(marks)
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            key = id(storage)
            if key in self._existing or key in self._numbers:
                continue
            self._numbers[key] = number = len(self._inside)
            self._inside.append(self._depth > 0 or backward and bool(self._units))
            self._marked.append(mark)
            self._log.append((number, storage.nbytes()))
            weakref.finalize(storage, self._release, key, number, storage.nbytes())
        return out

    def _release(self, key: int, number: int, size: int) -> None:
        del self._numbers[key]
        self._log.append((number, -size))

    def _register(self, tensor: Tensor, mark: bool) -> None:
        storage = tensor.untyped_storage()
        self._existing[id(storage)] = (storage, mark)

    def _mark_of(self, tensor: Tensor) -> bool:
        """Returns a tensor's mark; registers a tensor allocated before the recording."""
        key = id(tensor.untyped_storage())
        number = self._numbers.get(key)
        if number is not None:
            return self._marked[number]
        if key not in self._existing:
            self._register(tensor, False)
        return self._existing[key][1]

    def _record_attention(self, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None:
        """Counts the tensors of a unit's self-attention, which context parallelism exchanges."""
        if self._forward_end is None and self._depth and query.shape[-2] == key.shape[-2]:
            self.attention += sum(x.nbytes for x in (query, key, value, out))

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        handles = []
        entered: set[int] = set()

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._depth += 1
            if not self.tokens:
                first = next(_tensors((args, kwargs)))
                self.tokens = first.shape[1] if first.ndim > 2 else 1

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self._depth -= 1

        def column(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            key = self._numbers.get(id(args[0].untyped_storage()), -1)
            if self._forward_end is None and key not in entered:
                entered.add(key)
                self.column_inputs += args[0].nbytes

        def row(module: nn.Module, args: Any, output: Tensor) -> None:
            if self._forward_end is None:
                self.row_outputs += output.nbytes

        for unit in self._units:
            handles.append(unit.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(unit.register_forward_hook(leave, always_call=True))
        for layer in self._split.column_wise:
            handles.append(layer.register_forward_pre_hook(column))
        for layer in self._split.row_wise:
            handles.append(layer.register_forward_hook(row))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _recording(self, gradients: set[int]) -> Recording:
        columns = np.array(
            [
                (3 + m if n in gradients else (1 + m if inside else 0))
                for n, (inside, m) in enumerate(zip(self._inside, self._marked, strict=True))
            ],
            dtype=int,
        )
        deltas = np.zeros((len(self._log), len(KINDS)))
        for i, (number, size) in enumerate(self._log):
            deltas[i, columns[number]] = size
        forward_end = len(self._log) if self._forward_end is None else self._forward_end
        return Recording(
            bytes=np.concatenate([np.zeros((1, len(KINDS))), deltas.cumsum(0)]),
            forward_end=forward_end,
            flops=(self._flops[0], self._flops[1]),
            unit_flops=self._unit_flops,
            attention=self.attention,
            row_outputs=self.row_outputs,
            column_inputs=self.column_inputs,
            tokens=self.tokens,
        )


class FusedAttention(TorchFunctionMode):
    """Runs attention as a fused kernel, which stores no attention matrix, on the meta device too.

    Args:
        on_attention: Called with the query, key, value and output of every attention.
    """

    def __init__(self, on_attention: Callable[[Tensor, Tensor, Tensor, Tensor], None]) -> None:
        super().__init__()
        self._on_attention = on_attention

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        return self._attend(*args, **kwargs)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if enable_gqa:
            repeats = query.shape[-3] // key.shape[-3]
            key, value = (x.repeat_interleave(repeats, -3) for x in (key, value))
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)
        out = _FUSED(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
        self._on_attention(query, key, value, out)
        return out


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _flops(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    if func is _FUSED.default:
        query, key, value = (x.shape for x in args[:3])
        return sdpa_flop_count(query, key, value)
    if func is _FUSED_BACKWARD.default:
        gradient, query, key, value = (x.shape for x in args[:4])
        return sdpa_backward_flop_count(gradient, query, key, value)
    count = flop_registry.get(func._overloadpacket)
    return 0 if count is None else int(count(*args, **kwargs, out_val=out))
