"""Locks: one process at a time writes to a folder or file.

The lock is the operating system's, on the file ``.lock`` of a folder: it ends with the process
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
from pathlib import Path
from typing import Any

from pdmd.documents import read_json
from pdmd.files import write_file

__all__ = ["LOCKS", "Lock"]

LOCK = ".lock"
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EOPNOTSUPP)
LOCKS = (LOCK, f"{LOCK}.json")
"""The files of a folder's lock."""


class Lock:
    """A lock of a folder or file; may be entered again while it is held.

    Args:
        path: What is locked.
        file: The file of the lock, whose folder exists when it is entered; by default ``.lock``
            in ``path``. Who holds it is in ``FILE.json``.

    Raises:
        ValueError: On entering, if another process holds it; says which one.
    """

    def __init__(self, path: Path, file: Path | None = None) -> None:
        from filelock import FileLock

        self.path = path
        file = file or path / LOCK
        self._holder = file.with_name(f"{file.name}.json")
        self._lock: Any = FileLock(file, timeout=0)
        self._depth = 0

    def check(self) -> None:
        """Checks that no other process holds the lock; writes nothing that was not there.

        Raises:
            ValueError: If one does.
        """
        if self._holder.exists() and not self._depth:  # held, or its holder was killed
            self._acquire()
            self._lock.release()

    def __enter__(self) -> Lock:
        if not self._depth:
            self._acquire()
            now = time.strftime("%Y-%m-%d %H:%M:%S %z")
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
            write_file(self._holder, json.dumps(holder) + "\n")
        self._depth += 1
        return self

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if not self._depth:
            with contextlib.suppress(OSError):
                self._holder.unlink()
            with contextlib.suppress(OSError):
                self._lock.release()

    def _acquire(self) -> None:
        from filelock import Timeout

        try:
            self._lock.acquire()
        except Timeout:
            raise ValueError(
                f"{self.path} is in use by {self._described()}; wait until that has ended, end "
                "it, or write elsewhere"
            ) from None
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in NO_LOCKS:
                raise
            if self._alive():  # all that can be known on a file system without locks
                raise ValueError(f"{self.path} is in use by {self._described()}") from None

    def _alive(self) -> bool:
        try:
            found = read_json(self._holder)
            if found["host"] != socket.gethostname() or found["pid"] == os.getpid():
                return False
            os.kill(found["pid"], 0)
        except PermissionError:
            return True
        except (OSError, ValueError, LookupError, TypeError):
            return False
        return True

    def _described(self) -> str:
        try:
            found = read_json(self._holder)
            return f"process {found['pid']} on {found['host']}, since {found['since']}"
        except (OSError, ValueError, LookupError, TypeError):
            return "another process"
