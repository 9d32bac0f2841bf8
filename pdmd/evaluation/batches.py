"""Batches: samples drawn a batch at a time, and shared over ranks.

Row :math:`r` of a set has the prompt and the noise of :math:`r`, whatever the size of batches and
the number of ranks: noise is keyed by the row (:mod:`pdmd.randomness`). In one process, a set
that is a single batch has the noise of a plain generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pdmd.distributed.communicator import Communicator, SingleRank
from pdmd.randomness import RankGenerator

__all__ = ["RowBatch", "batch_size_of", "row_batches", "sampled_rows"]

TOGETHER = 2**20
"""Latent values that a rank samples together by default."""

Draw = Callable[[range, torch.Generator], Tensor]


@dataclass(frozen=True)
class RowBatch:
    """A batch of the rows of a set.

    Args:
        rows: This rank's rows; those beyond the set are padding.
        first: The first row of all ranks.
        kept: The rows of all ranks without padding.
    """

    rows: range
    first: int
    kept: int


def batch_size_of(latent_shape: Sequence[int], batch: int = 0) -> int:
    """Returns a rank's batch size: as many samples as have about a million latent values.

    Args:
        latent_shape: The shape of one sample.
        batch: The size that was chosen; 0 for the default.
    """
    return batch or max(1, TOGETHER // math.prod(latent_shape))


def row_batches(
    total: int, batch: int, ranks: Communicator | None = None, *, first: int = 0, unit: int = 1
) -> Iterator[RowBatch]:
    """Splits the rows of a set into batches, as many on every rank.

    Args:
        total: The number of rows, a multiple of ``unit``.
        batch: The largest number of rows on a rank; at least one unit is taken.
        ranks: The ranks, each of which has the rows after those of the rank before it.
        first: The first row that is wanted, a multiple of ``unit``.
        unit: Rows that stay on one rank, such as all samples of a prompt.
    """
    group = ranks or SingleRank()
    most = max(1, batch // unit) * group.data_ranks
    for start in range(first // unit, total // unit, most):
        units = min(most, total // unit - start)
        own = -(-units // group.data_ranks)
        begin = (start + group.data_rank * own) * unit
        yield RowBatch(range(begin, begin + own * unit), start * unit, units * unit)


def sampled_rows(
    draw: Draw,
    total: int,
    *,
    batch: int,
    seed: int,
    ranks: Communicator | None = None,
    on_batch: Callable[[int], object] | None = None,
) -> Tensor:
    """Draws the rows of a set in batches, each rank its share.

    Args:
        draw: Draws rows, with shape :math:`(B, *)`. It is called equally often on all ranks, also
            for rows from ``total`` on, which are dropped.
        total: The number of rows.
        batch: The largest number of rows that a rank draws together.
        seed: The seed of their noise.
        ranks: The ranks; this process alone by default.
        on_batch: Is notified of the number of rows after each batch.

    Returns:
        All rows, on the CPU, the same on every rank.
    """
    group = ranks or SingleRank()
    whole = group.data_ranks == 1 and batch >= total
    parts: list[Tensor] = []
    for part in row_batches(total, batch, group):
        if whole:
            generator = torch.Generator().manual_seed(seed)
        else:
            generator = RankGenerator.make(seed, first_row=part.rows.start)
        parts.append(group.gather_rows(draw(part.rows, generator))[: part.kept])
        if on_batch is not None:
            on_batch(part.kept)
    return torch.cat(parts)
