"""Private memory of a process: sampled while it works, with the peak of each stage.

Private memory is what the process alone holds (``RssAnon`` and ``VmSwap`` in Linux's
``/proc/self/status``, whose counters cost nothing to read). Pages of files that are mapped, such
as safetensors being read, are the kernel's cache and not counted.
"""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from types import TracebackType

__all__ = ["PrivateMemory", "private_bytes"]

STATUS = Path("/proc/self/status")


def private_bytes() -> int:
    """Returns this process's private memory, in bytes.

    Raises:
        OSError: If the system does not report it, as Linux does.
    """
    lines = [line.split() for line in STATUS.read_text().splitlines()]
    sizes = {line[0]: int(line[1]) for line in lines if line[-1:] == ["kB"]}
    if "RssAnon:" not in sizes:
        raise OSError(f"{STATUS} has no line 'RssAnon'")
    return 1024 * (sizes["RssAnon:"] + sizes.get("VmSwap:", 0))


class PrivateMemory:
    """Samples the private memory of this process in a thread, above what it had at first.

    Args:
        interval: Seconds between samples.

    Attributes:
        peaks: The highest value of each stage, in bytes, by name.
        ends: The value at the end of each stage.
    """

    def __init__(self, interval: float = 0.005) -> None:
        self.interval = interval
        self.peaks: dict[str, int] = {}
        self.ends: dict[str, int] = {}
        self._stage = ""
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def stage(self, name: str) -> None:
        """Starts a stage, and ends the one before."""
        self._measure()
        with self._lock:
            if self._stage:
                self.ends[self._stage] = private_bytes() - self._first
            self._stage = name
        self._measure()

    def __enter__(self) -> PrivateMemory:
        gc.collect()
        self._first = private_bytes()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stage("")
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(self.interval):
            self._measure()

    def _measure(self) -> None:
        with self._lock:
            if self._stage:
                now = private_bytes() - self._first
                self.peaks[self._stage] = max(self.peaks.get(self._stage, 0), now)
