r"""Context parallelism: a network whose tokens are split over ranks.

Every rank has all weights and a slice of the tokens. Around attention, ranks exchange heads for
tokens (Ulysses), so that each computes attention over all tokens for some of the heads, and
exchange back.

All ranks of a group must have the same inputs and the same loss. Then

- outputs are whole and the same on every rank, so operations between networks are unchanged;
- the gradients of the network's inputs are whole on every rank, so a gradient may flow through
  one network into another;
- **the gradients of parameters are partial**: their sum over the ranks is the gradient. Averaging
  over the :math:`n` ranks, as ``fully_shard`` does over a mesh of data and context parallel ranks,
  divides that sum by :math:`n`: multiply the loss by :math:`n` before its backward pass.

References:
    Jacobs et al., DeepSpeed Ulysses, arXiv:2309.14509, Section 3.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from pdmd.distributed.checks import check
from pdmd.distributed.collectives import Ranks, enter
from pdmd.distributed.parameter_views import override, scaled, view_parameters
from pdmd.distributed.plans import ContextPlan, Input, Output, matching, plans_of
from pdmd.distributed.token_counts import (
    forget_counts,
    gather_tokens,
    heads_to_tokens,
    own_tokens,
    shares,
    tokens_to_heads,
)

__all__ = ["HeadExchange", "context_parallelize"]


def context_parallelize(network: nn.Module, mesh: DeviceMesh) -> None:
    """Splits a network's tokens over ranks, by the plans that it states.

    Modules outside of any plan are replicated, with their gradients scaled to be partial too, so
    that one rule applies to all parameters.

    Args:
        network: The network, tensor parallel or not, changed in tokens.
        mesh: A one-dimensional mesh named ``cp``.

    Raises:
        ValueError: If the network cannot be split (see :func:`~pdmd.distributed.check`), or the
            mesh has another name; the network is unchanged then. In a forward pass: if a number of
            tokens of a stream without a name is not divisible by the ranks, or attention cannot be
            split.
    """
    ranks = Ranks.of(mesh, "cp")
    check(network, context=ranks.size)
    plans = plans_of(network)
    planned: set[nn.Module] = set()
    for path, plan in plans.items():
        module = network.get_submodule(path)
        assert plan.context is not None
        planned.update(module.modules())
        module.context_ranks = ranks  # type: ignore[assignment]
        _split(module, plan.context, ranks)
    for module in network.modules():
        if module not in planned:
            module.context_ranks = ranks  # type: ignore[assignment]
            view_parameters(module, scaled)


class HeadExchange(TorchFunctionMode):
    """Exchanges heads for tokens around ``scaled_dot_product_attention``.

    Args:
        ranks: The context parallel ranks.
        calls: List to which the shape of every query is appended.
        streams: The streams of the tokens; all by default.
    """

    def __init__(
        self, ranks: Ranks, calls: list[torch.Size], streams: tuple[str, ...] | None = None
    ) -> None:
        super().__init__()
        self.ranks = ranks
        self.calls = calls
        self.streams = streams

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.unflatten:  # as a method: torch.compile cannot trace it as a function
            x, dim, sizes = args
            return x.unflatten(dim, _inferred(x, (x.shape[dim],), sizes))
        if func is Tensor.reshape and not args[0].numel():
            sizes = args[1:] if isinstance(args[1], int) else tuple(args[1])
            return args[0].reshape(_inferred(args[0], args[0].shape, sizes))
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return self._attend(*args, **(kwargs or {}))

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Any,
    ) -> Tensor:
        self.calls.append(query.shape)
        if is_causal:
            raise ValueError(
                "causal attention cannot be split over context parallel ranks; use parallel.cp = 1"
            )
        for name, x in (("query", query), ("key", key), ("value", value)):
            if x.ndim != 4 or x.shape[1] % self.ranks.size:
                raise ValueError(
                    f"expected a {name} of shape (batch, heads, tokens, features) with heads "
                    f"divisible by {self.ranks.size} context parallel ranks, got "
                    f"{tuple(x.shape)}; use fewer ranks"
                )
        counts = shares(key.shape[2], self.streams, self.ranks)
        if attn_mask is not None:
            attn_mask = self._gather_mask(attn_mask, key, counts)
        # Norms under autocast return float32, which attention would narrow after the exchange.
        query, key = query.to(value.dtype), key.to(value.dtype)
        query, key, value = (tokens_to_heads(x, counts, self.ranks) for x in (query, key, value))
        attended = scaled_dot_product_attention(
            query, key, value, attn_mask=attn_mask, dropout_p=dropout_p, **options
        )
        return heads_to_tokens(attended, counts, self.ranks)

    def _gather_mask(self, mask: Tensor, key: Tensor, counts: list[int] | None) -> Tensor:
        # A mask over keys is split like the keys, so it is gathered; one over queries too is not.
        over_keys = mask.shape[-1] == key.shape[2] and (mask.ndim < 2 or mask.shape[-2] == 1)
        if not over_keys or (mask.ndim == 4 and mask.shape[1] != 1):
            raise ValueError(
                f"an attention mask of shape {tuple(mask.shape)} cannot be split over context "
                f"parallel ranks; pass one over keys only, (batch, 1, 1, {key.shape[2]})"
            )
        return gather_tokens(mask, mask.ndim - 1, counts, self.ranks)


def _inferred(x: Tensor, shape: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[int, ...]:
    # A rank may have no token of a short text, and then torch cannot infer a size.
    if x.numel() or -1 not in sizes:
        return sizes
    known = -math.prod(size or 1 for size in sizes)
    whole = math.prod(size or 1 for size in shape)
    return tuple(whole // known if size == -1 else size for size in sizes)


class _Attention(nn.Module):
    context_ranks: Ranks  # type: ignore[assignment]
    context_streams: tuple[str, ...] | None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        calls: list[torch.Size] = []
        with HeadExchange(self.context_ranks, calls, self.context_streams):
            output = super().forward(*args, **kwargs)  # type: ignore[misc]
        if not calls:
            raise ValueError(
                f"{type(self).__name__} did not call torch's scaled_dot_product_attention, so its "
                "ranks did not exchange tokens; use the native attention backend"
            )
        return output


def _split(module: nn.Module, plan: ContextPlan, ranks: Ranks) -> None:
    module.register_forward_pre_hook(_enter_inputs(ranks), with_kwargs=True)
    for tokens in plan.split:
        for path, part in matching(module, tokens.module):
            name = path or type(module).__name__
            if isinstance(tokens, Input):
                names = list(inspect.signature(type(part).forward).parameters)
                position = names.index(tokens.argument) - 1
                hook = _split_input(tokens, position, name, ranks)
                part.register_forward_pre_hook(hook, with_kwargs=True)
            else:
                part.register_forward_hook(_split_output(tokens, name, ranks))
    for tokens in plan.gather:
        for _, part in matching(module, tokens.module):
            part.register_forward_hook(_gather_output(tokens, ranks))
    for pattern in plan.attention:
        for _, part in matching(module, pattern):
            part.context_ranks = ranks  # type: ignore[assignment]
            part.context_streams = plan.streams.get(pattern)  # type: ignore[assignment]
            override(part, _Attention)


def _enter_inputs(ranks: Ranks) -> Callable[..., Any]:
    def one(x: Any) -> Any:
        return enter(x, ranks) if isinstance(x, Tensor) and x.requires_grad else x

    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        forget_counts()
        return tree_map(one, args), tree_map(one, kwargs)

    return hook


def _split_input(tokens: Input, position: int, name: str, ranks: Ranks) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if tokens.argument in kwargs:
            x = kwargs[tokens.argument]
        elif position < len(args):
            x = args[position]
        else:
            return None
        if not isinstance(x, Tensor) or (tokens.ndim is not None and x.ndim != tokens.ndim):
            return None
        what = f"the {tokens.argument} of {name}"
        own = own_tokens(x, tokens.dim, tokens.stream, what, ranks)
        if tokens.argument in kwargs:
            return args, kwargs | {tokens.argument: own}
        return (*args[:position], own, *args[position + 1 :]), kwargs

    return hook


def _split_output(tokens: Output, name: str, ranks: Ranks) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        what = f"the output of {name}"
        return _replace(
            output, tokens.index, lambda x: own_tokens(x, tokens.dim, tokens.stream, what, ranks)
        )

    return hook


def _gather_output(tokens: Output, ranks: Ranks) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        streams = () if tokens.stream is None else (tokens.stream,)

        def whole(x: Tensor) -> Tensor:
            return gather_tokens(x, tokens.dim, shares(x.shape[tokens.dim], streams, ranks), ranks)

        return _replace(output, tokens.index, whole)

    return hook


def _replace(output: Any, index: int | None, change: Callable[[Tensor], Tensor]) -> Any:
    if index is None:
        return change(output)
    return tuple(change(x) if i == index else x for i, x in enumerate(output))
