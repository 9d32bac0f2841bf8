r"""Random numbers for batches that may be sharded over ranks.

All randomness comes from explicit generators. If a batch of :math:`B` rows is sharded over
:math:`R` data-parallel ranks, every rank seeds the same generator, samples all :math:`B` rows and
keeps its :math:`B / R`. The ranks together then sample what one process would, and ranks of the
same shard (tensor and context parallelism) sample the same rows. Numbers are sampled on the
generator's device, the CPU, and moved, so a seed gives the same numbers on every device.

Custom objectives sample through these functions. A random number that has no batch dimension,
such as the index of a step, is sampled with torch directly and is the same on all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pdmd.typing import moved

__all__ = ["RankGenerator", "rand", "randint", "randn", "randn_like"]


class RankGenerator(torch.Generator):
    """A generator in the same state on all ranks, with the shard of the batch of this rank.

    Attributes:
        rank: Index of this rank among the data-parallel ranks.
        ranks: Number of data-parallel ranks.
    """

    rank: int = 0
    ranks: int = 1

    @classmethod
    def make(cls, seed: int, rank: int = 0, ranks: int = 1) -> RankGenerator:
        """Creates a generator on the CPU.

        Args:
            seed: The seed, the same on all ranks.
            rank: Index of this rank, in :math:`[0, R)`.
            ranks: Number of ranks :math:`R`.

        Raises:
            ValueError: If the rank is outside :math:`[0, R)`.
        """
        if not 0 <= rank < ranks:
            raise ValueError(f"rank must be in [0, {ranks}), got {rank}")
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
    """Samples standard normal noise.

    Args:
        shape: The shape on this rank, :math:`(B, *)`.
        generator: The source of randomness; ``None`` uses torch's global generator.
        dtype: The dtype; torch's default if ``None``.
        device: The device of the result; the generator's if ``None``.

    Returns:
        Noise with shape :math:`(B, *)`.
    """
    total, rows = _rows(int(shape[0]), generator)
    source = None if generator is None else generator.device
    noise = torch.randn((total, *shape[1:]), generator=generator, dtype=dtype, device=source)[rows]
    return noise if device is None else moved(noise, device)


def randn_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Samples standard normal noise of the shape of ``x``.

    Args:
        x: Latents, with shape :math:`(B, *)`.
        generator: The source of randomness; ``None`` uses torch's global generator.

    Returns:
        Noise with the shape, dtype and device of ``x``.
    """
    return randn(x.shape, generator, dtype=x.dtype, device=x.device)


def rand(n: int, generator: torch.Generator | None, *, dtype: torch.dtype | None = None) -> Tensor:
    """Samples uniformly from [0, 1).

    Args:
        n: Number of rows on this rank.
        generator: The source of randomness; ``None`` uses torch's global generator.
        dtype: The dtype; torch's default if ``None``.

    Returns:
        A tensor of shape :math:`(n)` on the generator's device.
    """
    total, rows = _rows(n, generator)
    device = None if generator is None else generator.device
    return torch.rand(total, generator=generator, dtype=dtype, device=device)[rows]


def randint(high: int, n: int, generator: torch.Generator | None) -> Tensor:
    """Samples integers uniformly from [0, ``high``).

    Args:
        high: Exclusive upper bound.
        n: Number of rows on this rank.
        generator: The source of randomness; ``None`` uses torch's global generator.

    Returns:
        An int64 tensor of shape :math:`(n)` on the generator's device.
    """
    total, rows = _rows(n, generator)
    device = None if generator is None else generator.device
    return torch.randint(high, (total,), generator=generator, device=device)[rows]


def _rows(n: int, generator: torch.Generator | None) -> tuple[int, slice]:
    if not isinstance(generator, RankGenerator):
        return n, slice(None)
    return n * generator.ranks, slice(n * generator.rank, n * (generator.rank + 1))
