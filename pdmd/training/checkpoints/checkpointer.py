"""Checkpointers: write and read the state of a run.

A checkpoint is a set of named tensors and a *cursor* of JSON values. Tensors are stored in the
layout of the plain network, so that a run may resume on another number of ranks. Finished experts
do not change any more: each is written once, beside the checkpoints, which refer to it.

What is checked of a checkpoint when it is read: :mod:`pdmd.training.checkpoints.metadata`.
"""

from __future__ import annotations

import enum
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from pdmd.distributed.communicator import Communicator
from pdmd.training.checkpoints.intervals import Interval
from pdmd.training.checkpoints.store import DamagedCheckpoint, Store
from pdmd.training.checkpoints.time_limits import TimeLimit

__all__ = ["Checkpointer", "Decision", "Interrupted", "NoCheckpoints", "State"]

State: TypeAlias = tuple[dict[str, Tensor], dict[str, Any]]
"""The tensors of a checkpoint by name, and its cursor of JSON values."""


class Interrupted(RuntimeError):
    """The run stopped between two updates, on request."""


class Decision(enum.IntEnum):
    """What to do between two updates."""

    CONTINUE = 0
    SAVE = 1
    """Write a checkpoint, and continue."""
    STOP = 2
    """Write a checkpoint, and end the run."""


class NoCheckpoints:
    """Base class of checkpointers: writes no checkpoints."""

    def decide(self, update: int, ranks: Communicator) -> Decision:
        """Decides what to do after an update of a phase, on every rank together.

        Args:
            update: Updates of the phase so far.
            ranks: The ranks, which agree on the decision without waiting for their devices.
        """
        return Decision.CONTINUE

    def save_expert(self, index: int, collect: Callable[[], dict[str, Tensor]]) -> None:
        """Writes a finished expert if it is not stored yet, on every rank together.

        Args:
            index: Index of its phase, from 0.
            collect: Collects its tensors; called only if it is written.
        """
        return

    def load_expert(self, index: int, tensors: Mapping[str, Tensor]) -> None:
        """Fills tensors from a finished expert of the checkpoint last read.

        Raises:
            ValueError: If the expert has no tensor of such a name and shape.
        """
        raise ValueError("there is no checkpoint to load from")

    def save(self, name: str, collect: Callable[[], State]) -> None:
        """Writes a checkpoint, on every rank together.

        Args:
            name: Name of the checkpoint; names sort in time.
            collect: Collects its tensors and cursor; called only if it is written.
        """
        return

    def read(self) -> dict[str, Any]:
        """Returns the cursor of the checkpoint to resume from.

        Raises:
            ValueError: If there is none.
        """
        raise ValueError("resume=True needs a checkpointer to resume from")

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Fills tensors from the checkpoint last read.

        Raises:
            ValueError: If the checkpoint has no tensor of such a name and shape.
        """
        raise ValueError("there is no checkpoint to load from")

    def wait(self) -> None:
        """Waits for checkpoints written in the background."""
        return

    def last_good(self) -> str:
        """Describes the checkpoint to go back to after a failure; empty without checkpoints."""
        return ""


class Checkpointer(NoCheckpoints):
    """Writes and reads the checkpoints of a run.

    Args:
        store: Where checkpoints are kept: a :class:`~pdmd.training.checkpoints.store.Store`, or
            the folder or URL of one.
        every: When checkpoints are due within a phase, or the number of updates between them.
        limit: When to stop before the end of the job; never by default.
        fingerprint: The settings on which the numbers depend, as JSON values; they must be equal
            in the run that wrote a checkpoint and the one that resumes from it.
        name: The checkpoint to resume from; the newest by default.

    Attributes:
        stop_requested: Whether to stop the run after its current update; set by any rank.

    Raises:
        ValueError: If ``every`` is a number below 1.
    """

    def __init__(
        self,
        store: Store | str | Path,
        *,
        every: int | Interval = 100,
        limit: TimeLimit | None = None,
        fingerprint: Mapping[str, Any] | None = None,
        name: str = "",
    ) -> None:
        if not isinstance(every, Interval):
            if every < 1:
                raise ValueError(f"updates between checkpoints must be at least 1, got {every}")
            every = Interval(updates=every)
        self.store = store if isinstance(store, Store) else Store(store)
        self.experts = self.store.within("experts")
        self.every, self.limit = every, limit
        self.fingerprint = json.loads(json.dumps(dict(fingerprint or {})))
        self.name = name
        self.stop_requested = False
        self._last = self._verified = (
            ""  # name of the last one written or read; of the last one verified
        )
        self._stored = 0  # finished experts that are stored
        self._saved_at: float | None = None

    def exists(self) -> bool:
        """Returns whether there is a checkpoint to resume from."""
        return self.store.latest() is not None

    def clear(self) -> None:
        """Removes every checkpoint."""
        self.store.clear()
        self.experts.clear()
        self.experts.remove_folder()
        self._last, self._stored = "", 0

    def stopping(self) -> bool:
        """Returns whether this rank was requested to stop, or the time limit is near."""
        return self.stop_requested or (self.limit is not None and self.limit.reached(time.time()))

    def decide(self, update: int, ranks: Communicator) -> Decision:
        now = time.monotonic()
        if self._saved_at is None:
            self._saved_at = now
        decision = Decision.CONTINUE
        if ranks.main and self.every.due(update, now - self._saved_at):
            decision = Decision.SAVE
        if self.stop_requested or (ranks.main and self.stopping()):
            decision = Decision.STOP
        return Decision(ranks.highest(decision))

    def save_expert(self, index: int, collect: Callable[[], dict[str, Tensor]]) -> None:
        if index < self._stored:
            return
        self.store.wait()  # a save in the background uses the same connections
        self._go_back()
        for name in reversed(self.experts.names()):  # of a phase that trained before, and again
            if name >= _expert(index):
                self.experts.remove(name)
        self.experts.save(_expert(index), collect(), {})
        self._stored = index + 1

    def save(self, name: str, collect: Callable[[], State]) -> None:
        self._go_back()
        if name == self._last:  # the run stops right after saving
            return
        tensors, cursor = collect()
        experts = {one: self.experts.digest(one) for one in self.experts.names()[: self._stored]}
        content = {"cursor": cursor, "fingerprint": self.fingerprint, "experts": experts}
        self.store.save(name, tensors, content)
        self._last, self._saved_at = name, time.monotonic()

    def _go_back(self) -> None:
        """Removes what is newer than the checkpoint from which the run resumed by name."""
        if self.name:
            for newer in reversed(self.store.names()):
                if newer > self.name:
                    self.store.remove(newer)
            self.name = ""

    def read(self) -> dict[str, Any]:
        """Returns the cursor of the checkpoint to resume from, after verifying all of it.

        Raises:
            ValueError: If there is none, it is damaged, or it was written with other settings.
        """
        names = self.store.names()
        if self.name and self.name not in names:
            raise ValueError(
                f"there is no checkpoint {self.name!r} in {self.store.url}; there are "
                f"{', '.join(names) or 'none'}"
            )
        name = self.name or self.store.latest()
        if name is None:
            raise ValueError(f"there is no checkpoint in {self.store.url}; start without --resume")
        try:
            if name != self._verified:
                self.store.verify(name)
                self._verify_experts(name)
            self._verified = name
        except DamagedCheckpoint as error:
            remedy = (
                f", with --checkpoint {error.before}" if error.before else ", with --overwrite"
            )
            raise ValueError(f"{error}{remedy}") from error
        content = self.store.content(name)
        old = content["fingerprint"]
        for key in {*old, *self.fingerprint}:
            if old.get(key) != self.fingerprint.get(key):
                raise ValueError(
                    f"the checkpoint {name} was written with {key} = {old.get(key)!r}, this run "
                    f"has {self.fingerprint.get(key)!r}; resume with the same settings or start "
                    "again, with --overwrite"
                )
        self._last, self._stored = name, len(content["experts"])
        return content["cursor"]

    def _verify_experts(self, name: str) -> None:
        """Verifies the finished experts to which a checkpoint refers."""
        stored = self.experts.names()
        for expert, digest in self.store.content(name)["experts"].items():
            before = self.store.whole_before(name)
            if expert not in stored:
                raise DamagedCheckpoint(self.store.url, name, expert, "is missing", before)
            if self.experts.digest(expert) != digest:
                raise DamagedCheckpoint(self.store.url, name, expert, "is another one", before)
            try:
                self.experts.verify(expert)
            except DamagedCheckpoint as error:
                file = f"{expert}/{error.file}"
                raise DamagedCheckpoint(self.store.url, name, file, error.damage, before) from None

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self._load(self.store, self._last, tensors)

    def load_expert(self, index: int, tensors: Mapping[str, Tensor]) -> None:
        self._load(self.experts, _expert(index), tensors)

    def _load(self, store: Store, name: str, tensors: Mapping[str, Tensor]) -> None:
        try:
            store.load(name, tensors, partial=True)
        except ValueError as error:
            raise ValueError(
                f"the checkpoint does not fit this run ({error}); start again, with --overwrite"
            ) from error

    def wait(self) -> None:
        self.store.wait()

    def last_good(self) -> str:
        last = self.store.latest()
        return f"the last good checkpoint is {last}" if last else "no checkpoint was written"


def _expert(index: int) -> str:
    return f"expert-{index + 1:04d}"
