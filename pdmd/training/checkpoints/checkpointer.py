"""Checkpointers: write and read the state of a run.

A checkpoint is a set of named tensors and a *cursor* of JSON values. Tensors are stored in the
layout of the plain network, so that a run may resume on another number of ranks.

What is checked of a checkpoint when it is read: :mod:`pdmd.training.checkpoints.metadata`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from pdmd.distributed.communicator import Communicator
from pdmd.training.checkpoints.inputs import InputDigests, changed_inputs
from pdmd.training.checkpoints.settings import SettingChange, differences, may_change
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

    def add_inputs(self, inputs: InputDigests) -> None:
        """Adds digests of inputs of the run, to be compared with those of a checkpoint."""
        return

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

    def drain(self) -> list[str]:
        """Returns the warnings since the last call, of checkpoints that could not be written."""
        return []

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
        may_change: Settings of the fingerprint that may differ all the same, by name; ``*`` stands
            for any text (:mod:`pdmd.training.checkpoints.settings`).
        inputs: Digests of what the run reads, by name
            (:mod:`pdmd.training.checkpoints.inputs`); those of the first rank count.
        allow_changed: Whether to resume although an input has changed.

    Attributes:
        stop_requested: Whether to stop the run after its current update.
        changes: Settings that may change and do, with their values in the checkpoint and in this
            run, after :meth:`read`.

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
        may_change: Collection[str] = (),
        inputs: InputDigests | None = None,
        allow_changed: bool = False,
    ) -> None:
        if every < 1:
            raise ValueError(f"updates between checkpoints must be at least 1, got {every}")
        self.store = store if isinstance(store, Store) else Store(store)
        self.every = every
        self.fingerprint = json.loads(json.dumps(dict(fingerprint or {})))
        self.name = name
        self.may_change, self.allow_changed = tuple(may_change), allow_changed
        self.inputs: InputDigests = dict(inputs or {})
        self.changes: dict[str, SettingChange] = {}
        self._warnings: list[str] = []
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

    def keep_last(self) -> None:
        """Removes every checkpoint but the newest."""
        for name in self.store.names()[:-1]:
            self.store.remove(name)

    def should_stop(self, ranks: Communicator) -> bool:
        return ranks.any(self.stop_requested)

    def due(self, update: int) -> bool:
        return update % self.every == 0

    def add_inputs(self, inputs: InputDigests) -> None:
        self.inputs |= inputs

    def save(self, name: str, collect: Callable[[], State]) -> None:
        if self.name and not self._attempt(self._remove_newer):
            return
        if name == self._last:  # the run stops right after saving
            return
        tensors, cursor = collect()
        content = {"cursor": cursor, "fingerprint": self.fingerprint, "inputs": self.inputs}
        self._attempt(self.store.wait)  # for an earlier one, which may have failed
        if self._attempt(lambda: self.store.save(name, tensors, content)):
            self._last = name

    def _remove_newer(self) -> None:
        """Removes the checkpoints after the one that the run resumed from."""
        for newer in reversed(self.store.names()):
            if newer > self.name:
                self.store.remove(newer)
        self.name = ""

    def _attempt(self, act: Callable[[], None]) -> bool:
        """Writes to the store; where that fails, warns and keeps what was there."""
        try:
            act()
        except OSError as error:
            self._warnings.append(
                f"a checkpoint could not be written ({error}); {self._known_good()}, and training "
                "goes on to the next one"
            )
            return False
        return True

    def read(self) -> dict[str, Any]:
        """Returns the cursor of the checkpoint to resume from, after verifying all of it.

        Raises:
            ValueError: If there is none, it is damaged, or it was written with other settings or
                from other inputs.
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
        self._check_inputs(name, content.get("inputs", {}))
        self._check_settings(name, content["fingerprint"], content.get("inputs", {}))
        self._last = name
        return content["cursor"]

    def _check_inputs(self, name: str, old: Mapping[str, Mapping[str, str]]) -> None:
        def check() -> None:
            changed = changed_inputs(old, self.inputs)
            if changed and not self.allow_changed:
                said = "; ".join(f"{key} has changed ({what})" for key, what in changed.items())
                raise ValueError(
                    f"{said} since the checkpoint {name} was written; restore it, go on with it "
                    "as it is now, with --allow-changed, or start again, with --overwrite"
                )

        self.store.on_first(check)

    def _check_settings(
        self, name: str, old: Mapping[str, Any], inputs: Mapping[str, Mapping[str, str]]
    ) -> None:
        changes = differences(old, self.fingerprint)
        moved = self.store.on_first(  # the same content in another place
            lambda: [key for key in changes if key in inputs and key in self.inputs]
        )
        free = {key: pair for key, pair in changes.items() if may_change(key, self.may_change)}
        for key, (then, now) in changes.items():
            if key not in free and key not in moved:
                raise ValueError(
                    f"the checkpoint {name} was written with {key} = {then!r}, this run has "
                    f"{now!r}; resume with the same settings or start again, with --overwrite"
                )
        self.changes = free

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        try:
            self.store.load(self._last, tensors, partial=True)
        except ValueError as error:
            raise ValueError(
                f"the checkpoint does not fit this run ({error}); start again, with --overwrite"
            ) from error

    def wait(self) -> None:
        self._attempt(self.store.wait)

    def drain(self) -> list[str]:
        drained, self._warnings = self._warnings, []
        return drained

    def last_good(self) -> str:
        last = self.store.latest()
        return f"the last good checkpoint is {last}" if last else "no checkpoint was written"

    def _known_good(self) -> str:
        try:
            return self.last_good()
        except OSError:
            return "earlier ones can't be listed either"
