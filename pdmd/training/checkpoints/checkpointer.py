"""Checkpointers: write and read the state of a run.

A checkpoint is a set of named tensors and a *cursor* of JSON values. Tensors are stored in the
layout of the plain network, so that a run may resume on another number of ranks.

What is checked of a checkpoint when it is read: :mod:`pdmd.training.checkpoints.metadata`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from pdmd.distributed.communicator import Communicator
from pdmd.training.checkpoints.store import DamagedCheckpoint, Store

__all__ = ["Checkpointer", "Interrupted", "NoCheckpoints", "State"]

State: TypeAlias = tuple[dict[str, Tensor], dict[str, Any]]
"""The tensors of a checkpoint by name, and its cursor of JSON values."""


class Interrupted(RuntimeError):
    """The run stopped between two updates, on request."""


class NoCheckpoints:
    """Base class of checkpointers: writes no checkpoints."""

    def should_stop(self, ranks: Communicator) -> bool:
        """Returns whether any rank was requested to stop after its current update."""
        return False

    def due(self, update: int) -> bool:
        """Returns whether a checkpoint is due after an update of a phase."""
        return False

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
        every: Updates between checkpoints, within a phase.
        fingerprint: The settings on which the numbers depend, as JSON values; they must be equal
            in the run that wrote a checkpoint and the one that resumes from it.
        name: The checkpoint to resume from; the newest by default.

    Attributes:
        stop_requested: Whether to stop the run after its current update.

    Raises:
        ValueError: If ``every`` is below 1.
    """

    def __init__(
        self,
        store: Store | str | Path,
        *,
        every: int = 100,
        fingerprint: Mapping[str, Any] | None = None,
        name: str = "",
    ) -> None:
        if every < 1:
            raise ValueError(f"updates between checkpoints must be at least 1, got {every}")
        self.store = store if isinstance(store, Store) else Store(store)
        self.every = every
        self.fingerprint = json.loads(json.dumps(dict(fingerprint or {})))
        self.name = name
        self.stop_requested = False
        self._last = self._verified = (
            ""  # name of the last one written or read; of the last one verified
        )

    def exists(self) -> bool:
        """Returns whether there is a checkpoint to resume from."""
        return self.store.latest() is not None

    def clear(self) -> None:
        """Removes every checkpoint."""
        self.store.clear()
        self._last = ""

    def should_stop(self, ranks: Communicator) -> bool:
        return ranks.any(self.stop_requested)

    def due(self, update: int) -> bool:
        return update % self.every == 0

    def save(self, name: str, collect: Callable[[], State]) -> None:
        if self.name:
            for newer in reversed(self.store.names()):
                if newer > self.name:
                    self.store.remove(newer)
            self.name = ""
        if name == self._last:  # the run stops right after saving
            return
        tensors, cursor = collect()
        self.store.save(name, tensors, {"cursor": cursor, "fingerprint": self.fingerprint})
        self._last = name

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
        self._last = name
        return content["cursor"]

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        try:
            self.store.load(self._last, tensors, partial=True)
        except ValueError as error:
            raise ValueError(
                f"the checkpoint does not fit this run ({error}); start again, with --overwrite"
            ) from error

    def wait(self) -> None:
        self.store.wait()

    def last_good(self) -> str:
        last = self.store.latest()
        return f"the last good checkpoint is {last}" if last else "no checkpoint was written"
