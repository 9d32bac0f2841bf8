"""Locks: one process at a time writes to a run folder.

The lock is the operating system's, on the file ``.lock`` of the folder: it ends with the process
that holds it, however that ends, so nothing stale is left. Beside it, ``.lock.json`` says who
holds it, for the message of the next one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pdmd.documents import read_json
from pdmd.files import write_file

__all__ = ["LOCKS", "RunLock", "RunLocks"]

LOCK, HOLDER = ".lock", ".lock.json"
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EOPNOTSUPP)
LOCKS = (LOCK, HOLDER)
"""The files of a lock."""


class RunLock:
    """The lock of a folder; may be entered again while it is held.

    Args:
        folder: The folder, which exists when the lock is entered.

    Raises:
        ValueError: On entering, if another process holds it; says which one.
    """

    def __init__(self, folder: Path) -> None:
        from filelock import FileLock

        self.folder = folder
        self._lock: Any = FileLock(folder / LOCK, timeout=0)
        self._depth = 0

    def check(self) -> None:
        """Checks that no other process holds the lock; writes nothing that was not there.

        Raises:
            ValueError: If one does.
        """
        if (self.folder / HOLDER).exists() and not self._depth:  # held, or its holder was killed
            self._acquire()
            self._lock.release()

    def __enter__(self) -> RunLock:
        if not self._depth:
            self._acquire()
            now = time.strftime("%Y-%m-%d %H:%M:%S %z")
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
            write_file(self.folder / HOLDER, json.dumps(holder) + "\n")
        self._depth += 1
        return self

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if not self._depth:
            with contextlib.suppress(OSError):
                (self.folder / HOLDER).unlink()
            with contextlib.suppress(OSError):
                self._lock.release()

    def _acquire(self) -> None:
        from filelock import Timeout

        try:
            self._lock.acquire()
        except Timeout:
            raise ValueError(
                f"{self.folder} is in use by {self._holder()}; wait until that run has ended, end "
                "it, or choose another --out"
            ) from None
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in NO_LOCKS:
                raise
            if self._alive():  # all that can be known on a file system without locks
                raise ValueError(f"{self.folder} is in use by {self._holder()}") from None

    def _alive(self) -> bool:
        try:
            found = read_json(self.folder / HOLDER)
            if found["host"] != socket.gethostname() or found["pid"] == os.getpid():
                return False
            os.kill(found["pid"], 0)
        except PermissionError:
            return True
        except (OSError, ValueError, LookupError, TypeError):
            return False
        return True

    def _holder(self) -> str:
        try:
            found = read_json(self.folder / HOLDER)
            return f"process {found['pid']} on {found['host']}, since {found['since']}"
        except (OSError, ValueError, LookupError, TypeError):
            return "another process"


class RunLocks:
    """The locks of the folders that a run writes to.

    Args:
        folders: The folders.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.locks = [RunLock(folder) for folder in dict.fromkeys(f.absolute() for f in folders)]

    def check(self) -> None:
        """Checks that no other process holds one of them; see :meth:`RunLock.check`."""
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
                lock.folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(lock)
            yield
