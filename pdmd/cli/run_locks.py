"""Locks of runs: one process at a time writes to the folders of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from pdmd.locks import Lock

__all__ = ["RunLocks"]


class RunLocks:
    """The locks of the folders that a run writes to.

    Args:
        folders: The folders.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.locks = [Lock(folder) for folder in dict.fromkeys(f.absolute() for f in folders)]

    def check(self) -> None:
        """Checks that no other process holds one of them; see :meth:`~pdmd.locks.Lock.check`."""
        for lock in self.locks:
            lock.check()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Creates the folders, and holds their locks within a block.

        Raises:
            ValueError: If another process holds one.
        """
        with contextlib.ExitStack() as held:
            for lock in self.locks:
                lock.path.mkdir(parents=True, exist_ok=True)
                held.enter_context(lock)
            yield
