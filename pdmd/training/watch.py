"""Watching over the ranks of a run, so that a dead one is named rather than waited for.

Every rank tells the others that it lives, through the store in which the ranks met, from a thread
of its own. One that falls silent for longer than a set time has died or hangs: whoever notices
says which rank it is and ends its process, since a collective that waits for it never returns.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

__all__ = ["Watch"]


BYE, FAILED = "bye", "failed "


class Watch:
    """A thread that tells of this rank's life and looks for the others'.

    Args:
        silence: Seconds of silence after which a rank is taken for dead.
        interval: Seconds between signs of life.

    Raises:
        ValueError: If the silence is not longer than two intervals.
    """

    def __init__(self, silence: float = 60.0, interval: float = 1.0) -> None:
        if not silence > 2 * interval:
            raise ValueError(
                f"a silence of {silence:g} s is too short for signs of life every {interval:g} s; "
                f"take more than {2 * interval:g} s"
            )
        self.silence, self.interval = silence, interval
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        default: Any = _get_default_store()
        self._store: Any = PrefixStore("pdmd/watch", default.clone())
        self._heard = {rank: (b"", time.monotonic()) for rank in range(self.ranks)}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pdmd-watch", daemon=True)

    def start(self) -> None:
        """Begins to watch."""
        self._store.set(str(self.rank), "0")
        self._thread.start()

    def stop(self, error: str = "") -> None:
        """Ends the watch and says good-bye, so that this rank's silence alarms no one.

        Args:
            error: Why this rank leaves before the end, for the others to end too.
        """
        self._over.set()
        self._thread.join(timeout=5 * self.interval)
        with contextlib.suppress(RuntimeError):  # the rank that kept the store has left
            self._store.set(str(self.rank), FAILED + error if error else BYE)

    def silent(self, longer_than: float) -> list[int]:
        """Returns the ranks not heard of for a number of seconds."""
        now = time.monotonic()
        return [
            rank
            for rank, (sign, at) in self._heard.items()
            if rank != self.rank and sign != BYE.encode() and now - at > longer_than
        ]

    def explain(self, error: BaseException) -> str:
        """Says which rank a failed collective was waiting for, if one fell silent.

        Waits up to a few signs of life to find out.
        """
        patience = 5 * self.interval
        deadline = time.monotonic() + patience + self.interval
        while time.monotonic() < deadline:
            silent = self.silent(min(patience, self.silence))
            if silent:
                return _name(silent, patience) + f" ({_first_line(error)})"
            time.sleep(self.interval / 4)
        return _first_line(error)

    def _run(self) -> None:
        beat = 0
        while not self._over.wait(self.interval):
            beat += 1
            try:
                self._store.set(str(self.rank), str(beat))
                for rank in range(self.ranks):
                    if rank != self.rank and self._store.check([str(rank)]):
                        sign = self._store.get(str(rank))
                        if sign != self._heard[rank][0]:
                            self._heard[rank] = (sign, time.monotonic())
            except RuntimeError:
                if self._over.is_set():
                    return
                self._end(
                    "the store in which the ranks met is gone, and with it the rank or the "
                    "launcher that kept it"
                )
            for rank, (sign, _) in self._heard.items():
                if sign.startswith(FAILED.encode()):
                    why = sign.decode().removeprefix(FAILED)
                    self._end(f"rank {rank} stopped: {why}")
            silent = self.silent(self.silence)
            if silent:
                self._end(_name(silent, self.silence))

    def _end(self, why: str) -> None:
        print(f"pdmd: error: rank {self.rank} stops: {why}", file=sys.stderr, flush=True)
        os._exit(1)


def _name(ranks: list[int], seconds: float) -> str:
    who = f"rank {ranks[0]} was" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))} were"
    return f"{who} not heard of for {seconds:g} s: died, killed or hanging"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
