"""Watchdog: detects a dead rank, so that a run ends instead of waiting for it.

Every rank sends heartbeats to the others through the rendezvous store, from a background thread. A
rank without a heartbeat for longer than a timeout has died or hangs. A rank that detects this
reports it and ends its own process, because a collective that waits for a dead rank never returns.

A second thread evaluates the heartbeats, since the first may itself block on the store if the
process that hosts it hangs. Timeouts are counted in ticks of that thread rather than in clock
time, so ranks that are suspended and continued together, as by a terminal, do not time out.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

__all__ = ["Watchdog"]

LEFT, FAILED = "left", "failed "
STORE_RANK = 0
"""The rank whose process hosts the store, unless the launcher's does."""
EXIT_TICKS = 2
"""Ticks in which a rank may exit by itself, with its own error, before it is ended."""
FAILURE_TICKS = 5
"""Ticks without a heartbeat after which a rank is taken to have failed a collective."""

_instances = itertools.count()  # in the same order on all ranks; earlier keys stay in the store


class Watchdog:
    """Two threads that send this rank's heartbeats and monitor those of the others.

    Args:
        heartbeat_timeout: Seconds without a heartbeat after which a rank is considered dead.
        interval: Seconds between heartbeats.

    Raises:
        ValueError: If the timeout is not longer than two intervals.
    """

    def __init__(self, heartbeat_timeout: float = 60.0, interval: float = 1.0) -> None:
        if not heartbeat_timeout > 2 * interval:
            raise ValueError(
                f"heartbeat_timeout = {heartbeat_timeout:g} s is too short for a heartbeat every "
                f"{interval:g} s; choose more than {2 * interval:g} s"
            )
        self.heartbeat_timeout, self.interval = heartbeat_timeout, interval
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        default: Any = _get_default_store()
        self._store: Any = PrefixStore(f"pdmd/heartbeats/{next(_instances)}", default.clone())
        self._tick = self._store_tick = 0
        self._heartbeats = {r: (b"", 0) for r in range(self.ranks) if r != self.rank}
        self._store_lost = False
        self._last_message = LEFT
        self._stopped = threading.Event()
        self._reporting = threading.Lock()  # held by the thread that reports the error
        self._threads = [
            threading.Thread(target=run, name=f"pdmd-{run.__name__[1:]}", daemon=True)
            for run in (self._send_heartbeats, self._monitor)
        ]

    def start(self) -> None:
        """Starts both threads."""
        for thread in self._threads:
            thread.start()

    def stop(self, error: str = "") -> None:
        """Stops monitoring, and notifies the other ranks, so that they do not time out.

        The rank that hosts the store waits until the others have read the message and left.

        Args:
            error: Why this rank leaves before the end; ends the other ranks too.
        """
        self._last_message = FAILED + error if error else LEFT
        self._stopped.set()
        for thread in self._threads:
            thread.join(timeout=2 * FAILURE_TICKS * self.interval)

    def failed_rank(self) -> str:
        """Describes the rank that made a collective fail, by an error or a missing heartbeat.

        Waits for a few intervals to find out; returns an empty string if there is none, or if
        this watchdog is not running.
        """
        if self._stopped.is_set() or not self._threads[1].is_alive():
            return ""
        timeout = min(FAILURE_TICKS * self.interval, self.heartbeat_timeout)
        last, until = self._tick + FAILURE_TICKS + EXIT_TICKS, time.monotonic() + 4 * timeout
        while not (failure := self._failure(timeout)):
            if self._tick >= last or time.monotonic() > until:
                break
            time.sleep(self.interval / 4)
        self._reporting.acquire(timeout=timeout)
        return failure

    def _send_heartbeats(self) -> None:
        beat = 0
        leave_by = None
        try:
            while True:
                leaving = self._stopped.is_set()
                self._store.set(str(self.rank), self._last_message if leaving else str(beat))
                for rank, (before, _) in self._heartbeats.items():
                    if self._store.check([str(rank)]):
                        message = self._store.get(str(rank))
                        if message != before:
                            self._heartbeats[rank] = message, self._tick
                self._store_tick = self._tick
                if leaving:
                    leave_by = leave_by or time.monotonic() + FAILURE_TICKS * self.interval
                    expired = time.monotonic() > leave_by
                    if self.rank != STORE_RANK or self._others_left() or expired:
                        return
                    time.sleep(self.interval / 4)
                self._stopped.wait(self.interval)
                beat += 1
        except RuntimeError:
            self._store_lost = True

    def _monitor(self) -> None:
        while not self._stopped.wait(self.interval):
            self._tick += 1
            if failure := self._failure(self.heartbeat_timeout):
                grace = EXIT_TICKS * self.interval
                if self._stopped.wait(grace) or not self._reporting.acquire(False):
                    return
                message = f"pdmd: error: rank {self.rank} stops: {failure}"
                print(message, file=sys.stderr, flush=True)
                self._last_message = FAILED + failure
                self._stopped.set()
                self._threads[0].join(timeout=FAILURE_TICKS * self.interval)
                os._exit(1)

    def _failure(self, timeout: float) -> str:
        """Describes the failure of another rank or of the store; empty if there is none."""
        for rank, (message, _) in self._heartbeats.items():
            if message.startswith(FAILED.encode()):
                return f"rank {rank} stopped: {message.decode().removeprefix(FAILED)}"
        of_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        host = "the launcher" if of_launcher else f"rank {STORE_RANK}"
        if self._store_lost:
            return f"{host} is gone, and with it the rendezvous store"
        dead = self._dead_ranks(timeout)
        if not dead:
            return ""
        if self._age(self._store_tick) > timeout:
            return (
                f"{host}, which hosts the rendezvous store, did not respond for {timeout:g} s: "
                "died, killed or hanging"
            )
        ranks = ", ".join(map(str, dead))
        return (
            f"rank{'s' if dead[1:] else ''} {ranks} sent no heartbeat for {timeout:g} s: died, "
            "killed or hanging"
        )

    def _dead_ranks(self, timeout: float) -> list[int]:
        return [
            rank
            for rank, (message, tick) in self._heartbeats.items()
            if message != LEFT.encode() and self._age(tick) > timeout
        ]

    def _age(self, tick: int) -> float:
        """Returns the seconds since a tick."""
        return (self._tick - tick) * self.interval

    def _others_left(self) -> bool:
        """Returns whether every other rank has left or is dead."""
        left = (LEFT.encode(), FAILED.encode())
        dead = self._dead_ranks(EXIT_TICKS * self.interval)
        return all(
            rank in dead or message.startswith(left)
            for rank, (message, _) in self._heartbeats.items()
        )
