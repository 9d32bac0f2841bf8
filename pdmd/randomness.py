r"""Random numbers for batches that may be sharded over ranks.

All randomness comes from explicit generators. A training's generator, :class:`RankGenerator`,
knows which rows of the global batch are on its rank. A number with one row per sample is keyed by
the run's seed, the index of the draw and the row in the global batch, and by nothing else
(:mod:`pdmd.philox`). Each rank therefore computes its own rows only; the ranks together have the
batch that one process would have, bit for bit; and ranks of the same shard (tensor and context
parallelism) have the same rows. Every call is one draw: the state is their number, which is the
same on all ranks, and a checkpoint resumes on any number of them. Large noise is computed on the
device that needs it, with the bits of every other device.

Custom objectives sample through these functions. A random number that has no batch dimension,
such as the index of a step, is sampled with torch directly and is the same on all ranks: also to
torch, all ranks' generators are in the same state. A plain :class:`torch.Generator` knows of no
rows; these functions then sample as torch does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from pdmd import philox
from pdmd.arguments import check_instance
from pdmd.typing import moved

__all__ = ["check_generator", "RankGenerator", "rand", "randint", "randn", "randn_like"]


class RankGenerator(torch.Generator):
    """A generator in the same state on all ranks, with the shard of the batch of this rank.

    Attributes:
        rank: Index of this rank among the data-parallel ranks.
        ranks: Number of data-parallel ranks.
        draws: Number of draws with one row per sample so far.
        first_row: Rows of the whole before the batch, as where a long list is sampled in batches.
    """

    rank: int = 0
    ranks: int = 1
    draws: int = 0
    first_row: int = 0

    @classmethod
    def make(
        cls, seed: int, rank: int = 0, ranks: int = 1, *, first_row: int = 0
    ) -> RankGenerator:
        """Creates a generator on the CPU.

        Args:
            seed: The seed, the same on all ranks.
            rank: Index of this rank, in :math:`[0, R)`.
            ranks: Number of ranks :math:`R`.
            first_row: Rows of the whole before the batch.

        Raises:
            ValueError: If the rank is outside :math:`[0, R)`.
        """
        if not 0 <= rank < ranks:
            raise ValueError(f"rank must be in [0, {ranks}), got {rank}")
        generator = cls()
        generator.manual_seed(seed)
        generator.rank, generator.ranks, generator.first_row = rank, ranks, first_row
        return generator

    def manual_seed(self, seed: int) -> RankGenerator:
        super().manual_seed(seed)
        self.draws = 0
        return self

    def seed(self) -> int:
        self.draws = 0
        return super().seed()

    def get_state(self) -> Tensor:
        """Returns torch's state and the number of draws, as uint8."""
        draws = torch.tensor([self.draws], device="cpu").view(torch.uint8)
        return torch.cat((super().get_state(), draws))

    def set_state(self, new_state: Tensor) -> RankGenerator:
        """Restores what :meth:`get_state` returned on any rank, of any number of them.

        Raises:
            ValueError: If the state is that of another class of generators.
        """
        expected = len(super().get_state()) + 8
        if len(new_state) != expected:
            raise ValueError(
                f"a RankGenerator's state has {expected} bytes, got {len(new_state)}; pass what "
                "its get_state() returned"
            )
        super().set_state(new_state[:-8].clone())
        self.draws = int(new_state[-8:].clone().view(torch.int64))
        return self

    def clone_state(self) -> RankGenerator:
        """Returns another generator in the same state, of the same rank."""
        return _restored(self.rank, self.ranks, self.get_state(), self.first_row)

    def __reduce__(self) -> Any:
        return _restored, (self.rank, self.ranks, self.get_state(), self.first_row)

    def next_rows(self, rows: int, words: int) -> tuple[int, int, int, int]:
        """Begins a draw.

        Args:
            rows: Number of rows on this rank.
            words: Number of words per row.

        Returns:
            The seed, the index of the draw, and this rank's first word and number of words.
        """
        draw, self.draws = self.draws, self.draws + 1
        first = self.first_row + self.rank * rows
        return self.initial_seed(), draw, first * words, rows * words


def _restored(rank: int, ranks: int, state: Tensor, first_row: int = 0) -> RankGenerator:
    return RankGenerator.make(0, rank, ranks, first_row=first_row).set_state(state)


def check_generator(generator: Any) -> None:
    """Checks that a source of randomness is one.

    Raises:
        TypeError: If it is neither ``None`` nor a torch.Generator.
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator is a torch.Generator or None, got {generator!r:.60}; pass "
            "torch.Generator().manual_seed(...)"
        )


def _rows(number: Any) -> Any:
    """Returns a number of rows, checked."""
    if (
        isinstance(number, bool)
        or not isinstance(number, Integral)
        or not 0 <= int(number) < 2**62
    ):
        raise TypeError(f"a number of rows is a whole number, got {number!s:.60}; pass one")
    return number


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
        dtype: The dtype; torch's default if ``None``. Noise of a :class:`RankGenerator` is
            computed in float32 and converted.
        device: The device of the result; the generator's if ``None``.

    Returns:
        Noise with shape :math:`(B, *)`.
    """
    if not isinstance(generator, RankGenerator):
        check_generator(generator)
        source = None if generator is None else generator.device
        if not isinstance(shape, tuple | list) or not isinstance(dtype, torch.dtype | None):
            raise TypeError(f"a shape and dtype are expected, got {shape!r:.60} and {dtype!r:.60}")
        noise = torch.randn(
            tuple(map(_rows, shape)), generator=generator, dtype=dtype, device=source
        )
        return noise if device is None else moved(noise, device)
    numbers = math.prod(shape[1:])
    draw = generator.next_rows(int(shape[0]), (numbers + 1) // 2)
    noise = philox.normal(*draw, device=generator.device if device is None else device)
    if numbers % 2:
        noise = noise.view(shape[0], numbers + 1)[:, :numbers].contiguous()
    noise, dtype = noise.view(shape), dtype or torch.get_default_dtype()
    return noise if noise.dtype == dtype else noise.to(dtype)


def randn_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Samples standard normal noise of the shape of ``x``.

    Args:
        x: Latents, with shape :math:`(B, *)`.
        generator: The source of randomness; ``None`` uses torch's global generator.

    Returns:
        Noise with the shape, dtype and device of ``x``.
    """
    check_instance("x", x, Tensor)
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
    if not isinstance(generator, RankGenerator):
        check_generator(generator)
        device = None if generator is None else generator.device
        if not isinstance(dtype, torch.dtype | None):
            raise TypeError(f"dtype is a torch.dtype or None, got {dtype!r:.60}; pass one")
        return torch.rand(_rows(n), generator=generator, dtype=dtype, device=device)
    dtype = dtype or torch.get_default_dtype()
    return philox.uniform(*generator.next_rows(n, 1), dtype=dtype)


def randint(high: int, n: int, generator: torch.Generator | None) -> Tensor:
    """Samples integers uniformly from [0, ``high``).

    Args:
        high: Exclusive upper bound.
        n: Number of rows on this rank.
        generator: The source of randomness; ``None`` uses torch's global generator.

    Returns:
        An int64 tensor of shape :math:`(n)` on the generator's device.

    Raises:
        ValueError: If ``high`` is below 1, or above :math:`2^{53}` with a :class:`RankGenerator`.
    """
    if not isinstance(generator, RankGenerator):
        check_generator(generator)
        device = None if generator is None else generator.device
        if isinstance(high, bool) or not isinstance(high, int) or not 1 <= high < 2**63:
            raise ValueError(f"integers are sampled below a bound in [1, 2^63], got {high!s:.60}")
        return torch.randint(high, (_rows(n),), generator=generator, device=device)
    if not 1 <= high <= 2**53:
        raise ValueError(f"integers are sampled below a bound in [1, 2^53], got {high}")
    return philox.integers(*generator.next_rows(n, 1), high=high)
