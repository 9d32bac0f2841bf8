r"""Tokens that ranks cannot share equally.

Of :math:`N = c \, b + r` tokens of a stream, each of the first :math:`r` of :math:`c` ranks has
:math:`b + 1` and each of the others :math:`b`. Only collectives pad, to the longest share, and
drop the padding at once: attention sees exactly :math:`N` tokens, without a mask. An attention
over several streams, such as text and image, has the sum of their shares on every rank.

What remains, :math:`r`, is recorded by the hooks that split a stream, and read where its tokens
are exchanged or gathered. Activation checkpointing reads it again in the backward pass, when
another call may have split other lengths, so its recomputation restores that of its forward pass
(:class:`RestoredCounts`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from pdmd.distributed.collectives import Ranks, exchange, gather

__all__ = [
    "RestoredCounts",
    "forget_counts",
    "gather_tokens",
    "heads_to_tokens",
    "own_tokens",
    "shares",
    "tokens_to_heads",
]


class _Uneven:
    remainders: Mapping[str, int]

    def __init__(self) -> None:
        self.remainders = {}


_uneven = _Uneven()


def forget_counts() -> None:
    """Forgets the streams that an earlier call split."""
    if _uneven.remainders:
        _uneven.remainders = {}


def own_tokens(x: Tensor, dim: int, stream: str | None, what: str, ranks: Ranks) -> Tensor:
    """Returns this rank's tokens.

    Args:
        x: All tokens of a stream.
        dim: The dimension of the tokens.
        stream: The name of the stream; ``None`` if its tokens must divide evenly.
        what: Names the tensor in errors.
        ranks: The context parallel ranks.

    Raises:
        ValueError: If a stream without a name does not divide by the ranks.
    """
    # The gradient of a slice is zero outside of it, so it is partial like all inner gradients.
    size, rest = divmod(x.shape[dim], ranks.size)
    if not rest:
        return x.chunk(ranks.size, dim)[ranks.rank]
    if stream is None:
        raise ValueError(
            f"{what} has {x.shape[dim]} tokens, which is not divisible by {ranks.size} context "
            "parallel ranks; name its stream in the plan, use fewer ranks, or pad to a multiple"
        )
    if _uneven.remainders.get(stream) != rest:
        _uneven.remainders = {**_uneven.remainders, stream: rest}
    start = ranks.rank * size + min(ranks.rank, rest)
    return x.narrow(dim, start, size + (ranks.rank < rest))


def shares(own: int, streams: Collection[str] | None, ranks: Ranks) -> list[int] | None:
    """Returns every rank's number of tokens; ``None`` if all have the same.

    Args:
        own: The number of tokens of this rank.
        streams: The streams that the tokens are from; all by default.
        ranks: The context parallel ranks.
    """
    rests = [
        rest for name, rest in _uneven.remainders.items() if streams is None or name in streams
    ]
    if not rests:
        return None
    more = [sum(rank < rest for rest in rests) for rank in range(ranks.size)]
    return [own - more[ranks.rank] + extra for extra in more]


def gather_tokens(x: Tensor, dim: int, counts: list[int] | None, ranks: Ranks) -> Tensor:
    """Concatenates the ranks' tokens into a whole tensor."""
    if counts is None:
        return gather(x, ranks, dim)
    return _cut(gather(_padded(x, dim, max(counts)), ranks, dim), dim, counts)


def tokens_to_heads(x: Tensor, counts: list[int] | None, ranks: Ranks) -> Tensor:
    """Exchanges a rank's tokens of all heads for all tokens of its heads.

    Args:
        x: Queries, keys or values, with shape (batch, heads, own tokens, features).
        counts: The tokens of every rank, as :func:`shares` returns them.
        ranks: The context parallel ranks.
    """
    if counts is None:
        return exchange(x, ranks, 1, 2)
    return _cut(exchange(_padded(x, 2, max(counts)), ranks, 1, 2), 2, counts)


def heads_to_tokens(x: Tensor, counts: list[int] | None, ranks: Ranks) -> Tensor:
    """Undoes :func:`tokens_to_heads`."""
    if counts is None:
        return exchange(x, ranks, 2, 1)
    longest = max(counts)
    parts = [_padded(part, 2, longest) for part in x.split(counts, 2)]
    return exchange(torch.cat(parts, 2), ranks, 2, 1).narrow(2, 0, counts[ranks.rank])


class RestoredCounts:
    """A ``context_fn`` of activation checkpointing that restores the counts of the forward pass.

    Args:
        inner: Another ``context_fn``, whose contexts are entered too.
    """

    def __init__(self, inner: Callable[[], tuple[Any, Any]] | None = None) -> None:
        self.inner = inner

    def __call__(self) -> tuple[Any, Any]:
        forward, recompute = self.inner() if self.inner else (contextlib.nullcontext(),) * 2
        return forward, _Restored(_uneven.remainders, recompute)


class _Restored:
    def __init__(self, remainders: Mapping[str, int], inner: Any) -> None:
        self._remainders, self._inner = remainders, inner

    def __enter__(self) -> None:
        self._before, _uneven.remainders = _uneven.remainders, self._remainders
        self._inner.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._inner.__exit__(*error)
        _uneven.remainders = self._before


def _padded(x: Tensor, dim: int, length: int) -> Tensor:
    missing = length - x.shape[dim]
    if not missing:
        return x
    shape = list(x.shape)
    shape[dim] = missing
    return torch.cat([x, x.new_zeros(shape)], dim)


def _cut(x: Tensor, dim: int, counts: list[int]) -> Tensor:
    parts = x.split(max(counts), dim)
    return torch.cat([p.narrow(dim, 0, n) for p, n in zip(parts, counts, strict=True)], dim)
