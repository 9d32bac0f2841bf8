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
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from pdmd.distributed.communicator import Communicator
from pdmd.training.checkpoints.inputs import InputDigests, changed_inputs
from pdmd.training.checkpoints.intervals import Interval
from pdmd.training.checkpoints.settings import SettingChange, differences, may_change
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

    def exists(self) -> bool:
        """Returns whether there is a checkpoint to resume from."""
        return False

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
        every: When checkpoints are due within a phase, or the number of updates between them.
        limit: When to stop before the end of the job; never by default.
        fingerprint: The settings on which the numbers depend, as JSON values; they must be equal
            in the run that wrote a checkpoint and the one that resumes from it.
        name: The checkpoint to resume from; the newest by default.
        may_change: Settings of the fingerprint that may differ all the same, by name; ``*`` stands
            for any text (:mod:`pdmd.training.checkpoints.settings`).
        defaults: Values of settings that an older version did not have, and so a checkpoint of it
            does not.
        inputs: Digests of what the run reads, by name
            (:mod:`pdmd.training.checkpoints.inputs`); those of the first rank count.
        allow_changed: Whether to resume although an input has changed.

    Attributes:
        stop_requested: Whether to stop the run after its current update; set by any rank.
        changes: Settings that may change and do, with their values in the checkpoint and in this
            run, after :meth:`read`.

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
        may_change: Collection[str] = (),
        defaults: Mapping[str, Any] | None = None,
        inputs: InputDigests | None = None,
        allow_changed: bool = False,
    ) -> None:
        if not isinstance(every, Interval):
            if every < 1:
                raise ValueError(f"updates between checkpoints must be at least 1, got {every}")
            every = Interval(updates=every)
        self.store = store if isinstance(store, Store) else Store(store)
        self.experts = self.store.within("experts")
        self.every, self.limit = every, limit
        self.fingerprint, self.defaults = (
            json.loads(json.dumps(dict(values or {}))) for values in (fingerprint, defaults)
        )
        self.name = name
        self.may_change, self.allow_changed = tuple(may_change), allow_changed
        self.inputs: InputDigests = dict(inputs or {})
        self.changes: dict[str, SettingChange] = {}
        self._warnings: list[str] = []
        self.stop_requested = False
        self._incomplete = False  # whether a finished expert could not be written
        self._last = self._verified = ""  # name of the last written or read; last verified
        self._branch = name  # the checkpoint named by this run or by the one that it continues
        self._stored = 0  # finished experts that are stored
        self._saved_at: float | None = None

    def exists(self) -> bool:
        return self.store.latest() is not None

    def clear(self) -> None:
        """Removes every checkpoint."""
        self.store.clear()
        self.experts.clear()
        self.experts.remove_folder()
        self._last, self._stored = "", 0

    def restart(self) -> None:
        """Resumes from the newest checkpoint if it was written since resuming from the named one.

        For a run that is started again with the same arguments.
        """
        newest = self.store.latest()
        if newest and self.store.content(newest).get("branch") == self.name:
            self.name = ""

    def keep_last(self) -> None:
        """Removes every checkpoint but the newest."""
        for name in self.store.names()[:-1]:
            self.store.remove(name)

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
        if index != self._stored:  # it is stored, or an earlier one could not be
            return

        def write() -> None:
            self.store.wait()  # a save in the background uses the same connections
            self._go_back()
            # of a phase that trained before, and again
            for name in reversed(self.experts.names()):
                if name >= _expert(index):
                    self.experts.remove(name)
            self.experts.save(_expert(index), collect(), {})

        self._incomplete = not self._attempt(write)
        if not self._incomplete:
            self._stored = index + 1

    def add_inputs(self, inputs: InputDigests) -> None:
        self.inputs |= inputs

    def save(self, name: str, collect: Callable[[], State]) -> None:
        if not self._attempt(self._go_back) or self._incomplete:
            return
        if name == self._last:  # the run stops right after saving
            return
        tensors, cursor = collect()

        def write() -> None:
            names = self.experts.names()[: self._stored]
            content = {
                "cursor": cursor,
                "fingerprint": self.fingerprint,
                "inputs": self.inputs,
                "branch": self._branch,
                "experts": {one: self.experts.digest(one) for one in names},
            }
            self.store.save(name, tensors, content)

        self._attempt(self.store.wait)  # for an earlier one, which may have failed
        if self._attempt(write):
            self._last = name
        self._saved_at = time.monotonic()

    def _go_back(self) -> None:
        """Removes what is newer than the checkpoint from which the run resumed by name."""
        if self.name:
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
                self._verify_experts(name)
            self._verified = name
        except DamagedCheckpoint as error:
            remedy = f"--checkpoint {error.before}" if error.before else "--overwrite"
            raise ValueError(f"{error}, with {remedy}") from error
        content = self.store.content(name)
        self._check_inputs(name, content.get("inputs", {}))
        self._check_settings(name, content["fingerprint"], content.get("inputs", {}))
        self._last, self._stored = name, len(content["experts"])
        self._branch = self.name or content.get("branch", "")
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
        changes = differences(old, self.fingerprint, self.defaults)
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
        self._attempt(self.store.wait)

    def drain(self) -> list[str]:
        drained, self._warnings = self._warnings, []
        return drained

    def last_name(self) -> str:
        """Returns the name of the checkpoint that was last written or read."""
        return self._last

    def last_good(self) -> str:
        last = self.store.latest()
        return f"the last good checkpoint is {last}" if last else "no checkpoint was written"

    def _known_good(self) -> str:
        try:
            return self.last_good()
        except OSError:
            return "earlier ones can't be listed either"


def _expert(index: int) -> str:
    return f"expert-{index + 1:04d}"
