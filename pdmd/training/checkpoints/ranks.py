"""Ranks: the processes that use a store of checkpoints together.

Rank 0 decides for all ranks, and an error on one rank is raised on all: none is left waiting.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch.distributed as dist

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Ranks"]

T = TypeVar("T")


class Ranks:
    """The ranks of a process group, or this process alone.

    They communicate over a separate gloo group, so that background saves do not interleave with
    the collectives of training. Creating that group is itself a collective.

    Args:
        process_group: The ranks; by default all, or this process alone where
            ``torch.distributed`` is not in use.

    Raises:
        ValueError: If this process is not one of the ranks.
    """

    def __init__(self, process_group: ProcessGroup | None = None) -> None:
        self.rank, self.size = 0, 1
        self.group: ProcessGroup | None = None
        if dist.is_available() and dist.is_initialized():
            members = dist.get_process_group_ranks(process_group)
            if dist.get_rank() not in members:
                raise ValueError(
                    f"rank {dist.get_rank()} is not in the process group of ranks {members}; "
                    "create the store on those ranks only"
                )
            self.group = cast(
                "ProcessGroup",
                dist.new_group(members, backend="gloo", use_local_synchronization=True),
            )
            self.rank, self.size = members.index(dist.get_rank()), len(members)
            self.leader = members[0]
        else:
            warnings.filterwarnings("ignore", "torch.distributed is disabled")

    def for_dcp(self) -> dict[str, Any]:
        """Returns the keyword arguments of DCP's functions."""
        return {"process_group": self.group, "no_dist": self.group is None}

    def first(self, act: Callable[[], T]) -> T:
        """Calls a function on rank 0, and returns its result on all ranks.

        Raises:
            BaseException: What the function raised; on other ranks an OSError with its message if
                an error of that class cannot be sent.
        """
        if self.group is None:
            return act()
        outcome: tuple[Any, BaseException | None] = (None, None)
        if self.rank == 0:
            outcome = _outcome(act)
        message: list[Any] = [(outcome[0], _sendable(outcome[1]))]
        dist.broadcast_object_list(message, src=self.leader, group=self.group)
        value, error = message[0]
        if (error := outcome[1] or error) is not None:
            raise error
        return value

    def each(self, act: Callable[[], T]) -> list[T]:
        """Calls a function on every rank, and returns all results, ordered by rank.

        Raises:
            BaseException: What the function raised on this rank, or else on the lowest rank that
                failed, as in :meth:`first`.
        """
        if self.group is None:
            return [act()]
        value, own = _outcome(act)
        outcomes: list[Any] = [None] * self.size
        dist.all_gather_object(outcomes, (value, _sendable(own)), group=self.group)
        for error in (own, *(error for _, error in outcomes)):
            if error is not None:
                raise error
        return [value for value, _ in outcomes]


def _outcome(act: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    try:
        return act(), None
    except BaseException as error:  # an interruption must reach the other ranks too
        return None, error


def _sendable(error: BaseException | None) -> BaseException | None:
    from pdmd.training.checkpoints.manifest import DamagedCheckpoint

    if error is None or type(error) in (ValueError, OSError, DamagedCheckpoint):
        return error
    return OSError(f"{type(error).__name__}: {error}")
