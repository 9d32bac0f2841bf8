r"""Random draws of a batch that may be spread over ranks.

All randomness comes from explicit generators. Where a batch of :math:`B` rows is spread over
:math:`R` ranks, every rank holds the same generator, draws all :math:`B` rows and keeps its own
:math:`B / R`: the ranks together see what one process would have seen, and those that share a
batch (tensor and context parallel ones) see the same. Draws are made on the CPU and moved, so
that a seed means the same numbers on every device.

Objectives of one's own draw through these functions; a draw that has no rows, such as the choice
of a step, is made with torch's own and is the same on all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pdmd.typing import moved

__all__ = ["RankGenerator", "rand", "randint", "randn", "randn_like"]


class RankGenerator(torch.Generator):
    """A generator that all ranks hold alike, and that knows which rows are this rank's.

    Attributes:
        rank: This rank's place among those that share out the batch.
        ranks: How many share it out.
    """

    rank: int = 0
    ranks: int = 1

    @classmethod
    def make(cls, seed: int, rank: int = 0, ranks: int = 1) -> RankGenerator:
        """Makes a generator on the CPU from its seed.

        Raises:
            ValueError: If the rank is not one of the ranks.
        """
        if not 0 <= rank < ranks:
            raise ValueError(f"a rank is from 0 to {ranks - 1}, got {rank}")
        generator = cls()
        generator.manual_seed(seed)
        generator.rank, generator.ranks = rank, ranks
        return generator


def randn(
    shape: Sequence[int],
    generator: torch.Generator | None,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draws standard normal rows.

    Args:
        shape: The shape of this rank's part, :math:`(B, *)`.
        generator: The source of randomness; ``None`` uses torch's global one.
        dtype: The type; torch's default by default.
        device: Where to put it; the generator's device by default.

    Returns:
        Noise of that shape.
    """
    total, rows = _rows(int(shape[0]), generator)
    source = None if generator is None else generator.device
    drawn = torch.randn((total, *shape[1:]), generator=generator, dtype=dtype, device=source)[rows]
    return drawn if device is None else moved(drawn, device)


def randn_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draws standard normal noise shaped like ``x``.

    Args:
        x: Latents, with shape :math:`(B, *)`.
        generator: The source of randomness; ``None`` uses torch's global one.

    Returns:
        Noise with the shape, type and device of ``x``.
    """
    return randn(x.shape, generator, dtype=x.dtype, device=x.device)


def rand(n: int, generator: torch.Generator | None, *, dtype: torch.dtype | None = None) -> Tensor:
    """Draws one uniform number in [0, 1) for each of ``n`` rows, on the generator's device."""
    total, rows = _rows(n, generator)
    device = None if generator is None else generator.device
    return torch.rand(total, generator=generator, dtype=dtype, device=device)[rows]


def randint(high: int, n: int, generator: torch.Generator | None) -> Tensor:
    """Draws one whole number below ``high`` for each of ``n`` rows, on the generator's device."""
    total, rows = _rows(n, generator)
    device = None if generator is None else generator.device
    return torch.randint(high, (total,), generator=generator, device=device)[rows]


def _rows(n: int, generator: torch.Generator | None) -> tuple[int, slice]:
    if not isinstance(generator, RankGenerator):
        return n, slice(None)
    return n * generator.ranks, slice(n * generator.rank, n * (generator.rank + 1))
