"""Communicators: batch splitting, joint decisions and failure handling between ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from pdmd.randomness import RankGenerator

__all__ = ["Communicator", "SingleRank"]


class Communicator(ABC):
    """Communication between the ranks of a training.

    Attributes:
        data_rank: Index of this rank among those that split a batch.
        data_ranks: Number of ranks that split a batch.
        main: Whether this rank writes files and reports progress.
    """

    data_rank: int = 0
    data_ranks: int = 1
    main: bool = True

    @abstractmethod
    def mean(self, value: Tensor) -> Tensor:
        """Returns the mean of a value over the data ranks."""

    @abstractmethod
    def highest(self, value: int) -> int:
        """Returns the highest of the ranks' values, without waiting for their devices."""

    def any(self, flag: bool) -> bool:
        """Returns whether a flag is set on any rank, without waiting for their devices."""
        return bool(self.highest(int(flag)))

    def gather_rows(self, value: Tensor) -> Tensor:
        """Returns the rows of all data ranks, in their order, on the CPU.

        Args:
            value: This rank's rows, as many as every other rank's.
        """
        return value.cpu()

    def consensus(self) -> AbstractContextManager[None]:
        """Runs a block on every rank; an error on one is raised on all.

        Raises:
            ValueError: If the block raised one on any rank.
            OSError: If the block raised one on any rank.
        """
        return nullcontext()

    def failed_rank(self) -> str:
        """Describes the rank that made a collective fail; empty if none is known."""
        return ""

    def close(self, error: BaseException | None = None) -> None:
        """Leaves the process group, at the end of a run or after an error."""
        return

    def generator(self, seed: int) -> RankGenerator:
        """Returns the generator for values with one row per sample."""
        return RankGenerator.make(seed, self.data_rank, self.data_ranks)

    def local_batch(self, batch: int) -> int:
        """Returns this rank's part of a global batch size.

        Raises:
            ValueError: If the batch size is not divisible by the data ranks.
        """
        if batch % self.data_ranks:
            raise ValueError(
                f"a batch of {batch} is not divisible by {self.data_ranks} data ranks; choose a "
                f"multiple of {self.data_ranks}"
            )
        return batch // self.data_ranks


class SingleRank(Communicator):
    """A single process."""

    def mean(self, value: Tensor) -> Tensor:
        return value

    def highest(self, value: int) -> int:
        return value
