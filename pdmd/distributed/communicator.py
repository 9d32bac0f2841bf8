"""Communication between the ranks of a training: the batch, decisions and failures they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from pdmd.randomness import RankGenerator

__all__ = ["Communicator", "SingleRank"]


class Communicator(ABC):
    """What the ranks of a training do together.

    Attributes:
        data_rank: This rank's index among those that split a batch.
        data_ranks: The number of those.
        main: Whether this rank writes files and reports progress.
    """

    data_rank: int = 0
    data_ranks: int = 1
    main: bool = True

    @abstractmethod
    def mean(self, value: Tensor) -> Tensor:
        """Returns the mean of a value over the ranks that split a batch."""

    @abstractmethod
    def any(self, flag: bool) -> bool:
        """Returns whether the flag is set on any rank."""

    def consensus(self) -> AbstractContextManager[None]:
        """Runs a block on every rank, and raises on all what any of them raised in it.

        Raises:
            ValueError: What the block raised, on this rank or another.
            OSError: Likewise.
        """
        return nullcontext()

    def failed_rank(self) -> str:
        """Returns which other rank made a collective fail; empty if none is known."""
        return ""

    def close(self, error: BaseException | None = None) -> None:
        """Leaves the process group, at the end or after an error."""
        return

    def generator(self, seed: int) -> RankGenerator:
        """Returns the generator of everything that has a row for each sample."""
        return RankGenerator.make(seed, self.data_rank, self.data_ranks)

    def local_batch(self, batch: int) -> int:
        """Returns this rank's part of a global batch.

        Raises:
            ValueError: If the batch does not divide.
        """
        if batch % self.data_ranks:
            raise ValueError(
                f"a batch of {batch} does not divide over {self.data_ranks} data ranks; take a "
                f"multiple of {self.data_ranks}"
            )
        return batch // self.data_ranks


class SingleRank(Communicator):
    """A single process."""

    def mean(self, value: Tensor) -> Tensor:
        return value

    def any(self, flag: bool) -> bool:
        return flag
