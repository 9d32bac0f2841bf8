"""Watching over the ranks of a run, so that a dead one is named rather than waited for.

Every rank tells the others that it lives, through the store in which the ranks met, from a thread
of its own. One that falls silent for longer than a set time has died or hangs: whoever notices
says which rank it is and ends its process, since a collective that waits for it never returns.

A second thread judges what was heard: the first may itself be waiting for a store whose keeper
hangs. It counts its own ticks for seconds, so that ranks that are stopped and continued together,
as by a terminal, don't take each other for dead.
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


BYE, FAILED = "bye", "failed "
KEEPER = 0
"""The rank whose process keeps the store, unless the launcher's does."""
GRACE = 2
"""Ticks that a rank is given to end by itself, and say why, before it is ended."""
PATIENCE = 5
"""Ticks of heartbeat_timeout after which a rank is to failed_rank for a collective that failed."""

_made = itertools.count()  # in one order on all ranks; the store may remember watches before


class Watchdog:
    """Two threads that tell of this rank's life and look for the others'.

    Args:
        heartbeat_timeout: Seconds of heartbeat_timeout after which a rank is taken for dead.
        interval: Seconds between signs of life.

    Raises:
        ValueError: If the heartbeat_timeout is not longer than two intervals.
    """

    def __init__(self, heartbeat_timeout: float = 60.0, interval: float = 1.0) -> None:
        if not heartbeat_timeout > 2 * interval:
            raise ValueError(
                f"heartbeat_timeout = {heartbeat_timeout:g} s is too short for a heartbeat every "
                f"{interval:g} s; take more than {2 * interval:g} s"
            )
        self.heartbeat_timeout, self.interval = heartbeat_timeout, interval
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        default: Any = _get_default_store()
        self._store: Any = PrefixStore(f"pdmd/watch/{next(_made)}", default.clone())
        self._tick = self._answered = 0
        self._heard = {rank: (b"", 0) for rank in range(self.ranks) if rank != self.rank}
        self._gone = False  # the store
        self._farewell = BYE
        self._over = threading.Event()
        self._said = threading.Lock()  # held by who says why this rank ends
        self._threads = [
            threading.Thread(target=run, name=f"pdmd-{run.__name__[1:]}", daemon=True)
            for run in (self._talk, self._judge)
        ]

    def start(self) -> None:
        """Begins to watch."""
        for thread in self._threads:
            thread.start()

    def stop(self, error: str = "") -> None:
        """Ends the watch and says good-bye, so that this rank's heartbeat_timeout alarms no one.

        The rank that keeps the store first lets the others hear it and leave.

        Args:
            error: Why this rank leaves before the end, for the others to end too.
        """
        self._farewell = FAILED + error if error else BYE
        self._over.set()
        for thread in self._threads:
            thread.join(timeout=2 * PATIENCE * self.interval)

    def failed_rank(self) -> str:
        """Says which rank a failed collective was waiting for, if one failed or fell silent.

        Waits up to a few signs of life to find out, if it watches at all.
        """
        if self._over.is_set() or not self._threads[1].is_alive():
            return ""
        patience = min(PATIENCE * self.interval, self.heartbeat_timeout)
        last, until = self._tick + PATIENCE + GRACE, time.monotonic() + 4 * patience
        while not (found := self._found(patience)):
            if self._tick >= last or time.monotonic() > until:
                break
            time.sleep(self.interval / 4)
        self._said.acquire(timeout=patience)
        return found

    def _talk(self) -> None:
        beat = 0
        leave_by = None
        try:
            while True:
                leaving = self._over.is_set()
                self._store.set(str(self.rank), self._farewell if leaving else str(beat))
                for rank, (before, _) in self._heard.items():
                    if self._store.check([str(rank)]):
                        sign = self._store.get(str(rank))
                        if sign != before:
                            self._heard[rank] = sign, self._tick
                self._answered = self._tick
                if leaving:
                    leave_by = leave_by or time.monotonic() + PATIENCE * self.interval
                    if self.rank != KEEPER or self._alone() or time.monotonic() > leave_by:
                        return
                    time.sleep(self.interval / 4)
                self._over.wait(self.interval)
                beat += 1
        except RuntimeError:
            self._gone = True

    def _judge(self) -> None:
        while not self._over.wait(self.interval):
            self._tick += 1
            if found := self._found(self.heartbeat_timeout):
                if self._over.wait(GRACE * self.interval) or not self._said.acquire(False):
                    return
                print(f"pdmd: error: rank {self.rank} stops: {found}", file=sys.stderr, flush=True)
                self._farewell = FAILED + found
                self._over.set()
                self._threads[0].join(timeout=PATIENCE * self.interval)
                os._exit(1)

    def _found(self, longer_than: float) -> str:
        """Says what is wrong with the other ranks, if something is."""
        for rank, (sign, _) in self._heard.items():
            if sign.startswith(FAILED.encode()):
                return f"rank {rank} stopped: {sign.decode().removeprefix(FAILED)}"
        of_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        keeper = "the launcher" if of_launcher else f"rank {KEEPER}"
        if self._gone:
            return f"{keeper} is gone, and with it the store in which the ranks met"
        silent = self._silent(longer_than)
        if not silent:
            return ""
        if self._unheard(self._answered) > longer_than:
            who = f"{keeper}, which keeps the store in which the ranks met, was"
        else:
            ranks = ", ".join(map(str, silent))
            who = f"ranks {ranks} were" if silent[1:] else f"rank {ranks} was"
        return f"{who} not heard of for {longer_than:g} s: died, killed or hanging"

    def _silent(self, longer_than: float) -> list[int]:
        return [
            rank
            for rank, (sign, tick) in self._heard.items()
            if sign != BYE.encode() and self._unheard(tick) > longer_than
        ]

    def _unheard(self, tick: int) -> float:
        return (self._tick - tick) * self.interval

    def _alone(self) -> bool:
        """Says whether every other rank has left, or can't be waited for."""
        left = (BYE.encode(), FAILED.encode())
        silent = self._silent(GRACE * self.interval)
        return all(
            rank in silent or sign.startswith(left) for rank, (sign, _) in self._heard.items()
        )
