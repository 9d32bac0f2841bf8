r"""Recording a computation on the meta device: which bytes are alive after every operation.

A storage counts from the operation that makes it until its last reference goes, as an allocator
sees it. Shapes are linear in the batch, so two recordings of the same computation, at two batches,
give every operation's bytes at any batch.

Bytes are told apart by how parallelism divides them. Inside a network's units, tensor parallelism
splits what lies between a column-wise and a row-wise layer. Weights of both are marked, and marks
spread: a matrix product is split if *one* of its factors is (a product over the split dimension is
whole again), any other operation's result if *any* of its inputs is. The same rule holds of the
backward pass.
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

__all__ = ["KINDS", "Course", "FusedAttention", "Recorder", "Recording", "fit"]

KINDS = ("outside", "units", "units_split", "gradients", "gradients_split")
"""How live bytes are told apart: outside the units; inside them, whole or split by tensor
parallelism; parameters' gradients, whole or split."""

_aten = torch.ops.aten
_PRODUCTS = {_aten.mm.default: (0, 1), _aten.addmm.default: (1, 2)}
_FUSED = _aten._scaled_dot_product_flash_attention_for_cpu
_FUSED_BACKWARD = _aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True, kw_only=True, eq=False)
class Course:
    """Bytes alive in the course of a computation, for any batch.

    Attributes:
        fixed: Bytes that do not grow with the batch, with shape ``(moments, kinds)``.
        slope: Bytes for every sample, likewise.
        turn: The moment at which the forward pass ended; the last one of a forward alone.
    """

    fixed: np.ndarray
    slope: np.ndarray
    turn: int

    def bytes(self, batch: float, weights: Sequence[float]) -> np.ndarray:
        """Returns the bytes at every moment.

        Args:
            batch: Samples.
            weights: What to count of a byte of every kind.

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
        turn: The moment at which the forward pass ended.
        flops: Floating point operations of the forward and of the backward pass; recomputation
            counts as backward.
        unit_flops: Those of the units' forward pass.
        attention: Bytes of query, key, value and output of the units' self-attention, forward.
        reduced: Bytes of the outputs of row-wise layers, forward.
        entering: Bytes of the distinct inputs of column-wise layers, forward.
        tokens: The length of the sequence that the units see; 0 without units.
    """

    bytes: np.ndarray
    turn: int
    flops: tuple[int, int]
    unit_flops: int
    attention: int
    reduced: int
    entering: int
    tokens: int


def fit(few: Recording, many: Recording, batches: tuple[int, int]) -> Course:
    """Fits bytes linear in the batch to two recordings.

    A network that goes through its samples one by one runs more operations for more of them, so
    that their moments do not pair; the peaks of either pass do, and are then all that is told.

    Args:
        few: The recording of the smaller batch.
        many: That of the larger one.
        batches: The samples of either.
    """
    if few.bytes.shape != many.bytes.shape or few.turn != many.turn:
        few, many = _peaks(few), _peaks(many)
    slope = (many.bytes - few.bytes) / (batches[1] - batches[0])
    return Course(fixed=few.bytes - batches[0] * slope, slope=slope, turn=few.turn)


def _peaks(recording: Recording) -> Recording:
    """Keeps the moments of most bytes: of the forward pass, at its end, and of the backward pass
    with its gradients and without.
    """
    live, turn = recording.bytes, recording.turn
    made = len(KINDS) - 2  # gradients, which come last
    back = live[turn:]
    kept = [
        int(live[: turn + 1].sum(1).argmax()),
        turn,
        turn + int(back[:, :made].sum(1).argmax()),
        turn + int(back.sum(1).argmax()),
    ]
    return dataclasses.replace(recording, bytes=live[kept], turn=1)


class Recorder(TorchDispatchMode):
    """Records live storages, operations and what passes between ranks.

    What a backward pass makes counts as inside the units, where nearly all of it is.

    Args:
        units: The network's units.
        split: The layers that tensor parallelism splits.
    """

    def __init__(self, units: Sequence[nn.Module], split: Split) -> None:
        super().__init__()
        self._units, self._split = units, split
        self._log: list[tuple[int, int]] = []  # (storage's number, bytes made or released)
        self._numbers: dict[int, int] = {}  # of live storages, by id
        self._inside: list[bool] = []
        self._marked: list[bool] = []
        self._foreign: dict[int, tuple[Any, bool]] = {}  # storages from before, and their marks
        self._depth = 0
        self._flops = [0, 0]
        self._unit_flops = 0
        self._turn: int | None = None
        self.attention = self.reduced = self.entering = self.tokens = 0

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
            split: The parameters that tensor parallelism splits, by ``id``.
        """
        enabled = gc.isenabled()
        gc.collect()
        gc.disable()  # cycles are released at chance moments
        layers = (*self._split.column_wise, *self._split.row_wise)
        under = (layer.weight for layer in layers)  # an adapter's network is none of its own
        for tensor in (*network.parameters(), *network.buffers(), *under):
            self._know(tensor, tensor.ndim > 1 and id(tensor) in split)
        try:
            with self._hooks(), self:
                with FusedAttention(self._attended):
                    out = forward()
                self._turn = len(self._log)
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
        backward = self._turn is not None
        flops = _flops(func, args, kwargs, out)
        self._flops[backward] += flops
        if self._depth and not backward:
            self._unit_flops += flops
        marks = [self._known(tensor) for tensor in _tensors((args, kwargs))]
        if func in _PRODUCTS:
            left, right = (self._known(args[i]) for i in _PRODUCTS[func])
            mark = left != right
        else:
            mark = any(marks)
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            key = id(storage)
            if key in self._foreign or key in self._numbers:
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

    def _know(self, tensor: Tensor, mark: bool) -> None:
        storage = tensor.untyped_storage()
        self._foreign[id(storage)] = (storage, mark)

    def _known(self, tensor: Tensor) -> bool:
        """Returns a tensor's mark; one from before the recording is known from here on."""
        key = id(tensor.untyped_storage())
        number = self._numbers.get(key)
        if number is not None:
            return self._marked[number]
        if key not in self._foreign:
            self._know(tensor, False)
        return self._foreign[key][1]

    def _attended(self, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None:
        """Hears of an attention; that over the units' own sequence passes between ranks."""
        if self._turn is None and self._depth and query.shape[-2] == key.shape[-2]:
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
            if self._turn is None and key not in entered:
                entered.add(key)
                self.entering += args[0].nbytes

        def row(module: nn.Module, args: Any, output: Tensor) -> None:
            if self._turn is None:
                self.reduced += output.nbytes

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
        turn = len(self._log) if self._turn is None else self._turn
        return Recording(
            bytes=np.concatenate([np.zeros((1, len(KINDS))), deltas.cumsum(0)]),
            turn=turn,
            flops=(self._flops[0], self._flops[1]),
            unit_flops=self._unit_flops,
            attention=self.attention,
            reduced=self.reduced,
            entering=self.entering,
            tokens=self.tokens,
        )


class FusedAttention(TorchFunctionMode):
    """Attends as fused kernels do, which keep no matrix of weights, on the meta device too.

    Args:
        heard: Hears query, key, value and output of every attention.
    """

    def __init__(self, heard: Callable[[Tensor, Tensor, Tensor, Tensor], None]) -> None:
        super().__init__()
        self._heard = heard

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
        self._heard(query, key, value, out)
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
