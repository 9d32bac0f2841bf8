"""Checkpoints of a run: whole or not there, on any URL, for any number of ranks.

A checkpoint holds every finished expert, the networks, averages and optimizers of the phase in
training, the random generator and the cursor, so that a resumed run is bit-identical to one that
was never interrupted. (Networks with dropout draw from torch's global generator, which is not
kept.) Networks are stored in their plain layout, whatever ranks they were spread
over, so that a run may go on with other degrees of parallelism.

Checkpoints are trusted input: see :mod:`pdmd.training.checkpoints.store`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pdmd.distillation.experts import Expert
from pdmd.training.checkpoints.store import DamagedCheckpoint, Store
from pdmd.training.monitoring.accounting import Account
from pdmd.training.phase_inputs import PhaseInputs
from pdmd.training.trainer import PhaseTrainer

__all__ = ["Checkpointer", "Interrupted"]


class Interrupted(RuntimeError):
    """The run stopped at a clean point, on request."""


class Checkpointer:
    """Writes and reads the checkpoints of a run.

    Args:
        store: Where checkpoints are kept: a :class:`~pdmd.training.checkpoints.store.Store`, or
            the folder or URL of one.
        every: Updates between checkpoints, within a phase.
        fingerprint: JSON values that must agree between the run that wrote and the one that
            resumes: the settings on which the numbers depend.
        name: The checkpoint to resume from; the newest by default.

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
            raise ValueError(f"checkpoints come every 1 or more updates, got {every}")
        self.store = store if isinstance(store, Store) else Store(store)
        self.every = every
        self.fingerprint = json.loads(json.dumps(dict(fingerprint or {})))
        self.name = name
        self.stop_requested = False
        self._last = self._verified = ""  # written or read last; found whole

    def exists(self) -> bool:
        """Says whether there is a checkpoint to resume from."""
        return self.store.latest() is not None

    def clear(self) -> None:
        """Removes every checkpoint."""
        self.store.clear()
        self._last = ""

    def save(
        self,
        finished: Sequence[Expert],
        trainer: PhaseTrainer | None,
        generator: torch.Generator,
        account: Account | None = None,
        phase_inputs: PhaseInputs | None = None,
    ) -> None:
        """Writes a checkpoint, on every rank together.

        Args:
            finished: The finished experts, over plain networks.
            trainer: The phase in training, if one is.
            generator: The source of randomness.
            account: The count of evaluations.
            phase_inputs: Where rollouts start.
        """
        update = 0 if trainer is None else trainer.update
        name = f"phase-{len(finished) + 1:04d}-update-{update:09d}"
        if self.name:
            for newer in reversed(self.store.names()):
                if newer > self.name:
                    self.store.remove(newer)
            self.name = ""
        if name == self._last:  # a run that stops where it has just saved
            return
        tensors: dict[str, Tensor] = {"rng": generator.get_state()}
        for i, expert in enumerate(finished):
            tensors.update(_named(f"finished.{i}", expert.denoiser.state_dict()))
        cursor: dict[str, Any] = {"finished": len(finished), "update": None}
        cursor["phase_inputs"] = {} if phase_inputs is None else phase_inputs.state()
        if account is not None:
            cursor["account"] = account.state()
        if trainer is not None:
            cursor["update"] = update
            cursor["fake_updates"] = trainer.fake_updates.state()
            cursor["skipped"] = trainer.health.state()
            moments = {role: _moments(trainer, role) for role in trainer.networks}
            cursor["moments"] = {role: sorted(names) for role, names in moments.items()}
            tensors.update(_trainer_tensors(trainer, moments))
        self.store.save(name, tensors, {"cursor": cursor, "fingerprint": self.fingerprint})
        self._last = name

    def read(self) -> dict[str, Any]:
        """Returns the cursor of the checkpoint to resume from, after verifying all of it.

        Raises:
            ValueError: If there is none, it is damaged, or it belongs to other settings.
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

    def load_network(self, name: str, network: nn.Module) -> None:
        """Fills a plain network from the checkpoint last read.

        Raises:
            ValueError: If the checkpoint's network is another.
        """
        self._load(_named(name, network.state_dict()))

    def load_generator(self, generator: torch.Generator) -> None:
        """Puts the random generator where it was."""
        state = torch.empty_like(generator.get_state())
        self._load({"rng": state})
        generator.set_state(state)

    def load_trainer(self, trainer: PhaseTrainer, cursor: Mapping[str, Any]) -> None:
        """Puts a trainer made anew where the checkpoint's was.

        Raises:
            ValueError: If the checkpoint's networks are others.
        """
        runtime = trainer.runtime
        trainer.update = cursor["update"]
        trainer.fake_updates.restore(cursor["fake_updates"])
        trainer.health.restore(cursor["skipped"])
        moments: dict[str, dict[str, dict[str, Tensor]]] = {}
        for role in trainer.networks:
            blank = runtime.blank_moments(trainer.networks[role], trainer.optimizers[role])
            moments[role] = {name: blank[name] for name in cursor["moments"][role]}
        tensors = _trainer_tensors(trainer, moments)
        self._load(tensors)
        for role, network in trainer.networks.items():
            runtime.restore(network, _part(tensors, role))
            runtime.restore_moments(network, trainer.optimizers[role], moments[role])
            trainer.schedules[role].load_state_dict({"last_epoch": trainer.update})
        runtime.restore(trainer.ema.network, _part(tensors, "ema"))

    def _load(self, tensors: Mapping[str, Tensor]) -> None:
        try:
            self.store.load(self._last, tensors, partial=True)
        except ValueError as error:
            raise ValueError(
                f"the checkpoint does not fit this run ({error}); start again, with --overwrite"
            ) from error


def _moments(trainer: PhaseTrainer, role: str) -> dict[str, dict[str, Tensor]]:
    return trainer.runtime.moments(trainer.networks[role], trainer.optimizers[role])


def _trainer_tensors(
    trainer: PhaseTrainer, moments: Mapping[str, Mapping[str, Mapping[str, Tensor]]]
) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for role, network in trainer.networks.items():
        tensors.update(_named(role, trainer.runtime.tensors(network)))
        for name, state in moments[role].items():
            for key, value in state.items():
                tensors[f"optimizer.{role}.{name}.{key}"] = value
    tensors.update(_named("ema", trainer.runtime.tensors(trainer.ema.network)))
    return tensors


def _named(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"network.{name}.{key}": value.detach() for key, value in tensors.items()}


def _part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    prefix = f"network.{name}."
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
