"""Checkpoints of a run: safetensors and JSON, whole or not there.

A checkpoint holds every finished expert, the networks, averages and optimizers of the phase in
training, the random generator and the cursor, so that a resumed run is bit-identical to one that
was never interrupted.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pdmd.experts import Expert
from pdmd.students import checksum
from pdmd.training.accounting import Account
from pdmd.training.phase_trainer import PhaseTrainer

__all__ = ["Checkpointer", "Interrupted", "restore_trainer", "take_network"]


class Interrupted(RuntimeError):
    """The run stopped at a clean point, on request."""


class Checkpointer:
    """Writes and reads the checkpoint of a run.

    Args:
        folder: Where checkpoints are kept.
        every: Updates between checkpoints, within a phase.
        fingerprint: JSON values that must agree between the run that wrote and the one that
            resumes: the settings on which the numbers depend.

    Raises:
        ValueError: If ``every`` is below 1.
    """

    def __init__(
        self, folder: str | Path, *, every: int = 100, fingerprint: Mapping[str, Any] | None = None
    ) -> None:
        if every < 1:
            raise ValueError(f"checkpoints come every 1 or more updates, got {every}")
        self.folder = Path(folder)
        self.every = every
        self.fingerprint = json.loads(json.dumps(dict(fingerprint or {})))
        self.stop_requested = False

    @property
    def path(self) -> Path:
        """The newest whole checkpoint's folder."""
        return self.folder / "latest"

    def exists(self) -> bool:
        """Says whether there is a checkpoint to resume from."""
        return self._newest() is not None

    def clear(self) -> None:
        """Removes every checkpoint."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def save(
        self,
        finished: Sequence[Expert],
        trainer: PhaseTrainer | None,
        generator: torch.Generator,
        account: Account | None = None,
    ) -> None:
        """Writes a checkpoint, then lets it take the place of the one before."""
        from safetensors.torch import save_file

        draft = self.folder / "draft"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        tensors: dict[str, Tensor] = {"rng": generator.get_state()}
        for i, expert in enumerate(finished):
            _put(tensors, f"finished.{i}", expert.denoiser)
        cursor: dict[str, Any] = {"finished": len(finished), "update": None}
        if account is not None:
            cursor["account"] = account.state()
        if trainer is not None:
            cursor["update"] = trainer.update
            cursor["fake_updates"] = trainer.fake_updates.state()
            for role, network in trainer.networks.items():
                _put(tensors, role, network)
                for i, state in trainer.optimizers[role].state_dict()["state"].items():
                    for key, value in state.items():
                        tensors[f"optimizer.{role}.{i}.{key}"] = value.detach().clone()
            _put(tensors, "ema", trainer.ema.network)
        save_file(tensors, draft / "state.safetensors")
        content = {
            "cursor": cursor,
            "fingerprint": self.fingerprint,
            "sha256": checksum(draft / "state.safetensors"),
        }
        (draft / "checkpoint.json").write_text(json.dumps(content, indent=2) + "\n")
        previous = self.folder / "previous"
        if self.path.exists():
            shutil.rmtree(previous, ignore_errors=True)
            self.path.rename(previous)
        draft.rename(self.path)
        shutil.rmtree(previous, ignore_errors=True)

    def read(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Reads the cursor and tensors of the newest checkpoint.

        Raises:
            ValueError: If there is none, it is damaged, or it belongs to other settings.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self._newest()
        if path is None:
            raise ValueError(f"there is no checkpoint in {self.folder}; start without --resume")
        try:
            content = json.loads((path / "checkpoint.json").read_text())
            if checksum(path / "state.safetensors") != content["sha256"]:
                raise ValueError("state.safetensors is not what was written")
            tensors = load_file(path / "state.safetensors")
            cursor, fingerprint = content["cursor"], content["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ValueError(
                f"the checkpoint {path} is damaged ({error}); start again, with --overwrite"
            ) from error
        for key in {*fingerprint, *self.fingerprint}:
            old, new = fingerprint.get(key), self.fingerprint.get(key)
            if old != new:
                raise ValueError(
                    f"the checkpoint {path} was written with {key} = {old!r}, this run has "
                    f"{new!r}; resume with the same settings or start again, with --overwrite"
                )
        return cursor, tensors

    def _newest(self) -> Path | None:
        for path in (self.path, self.folder / "previous"):
            if (path / "checkpoint.json").is_file():
                return path
        return None


def restore_trainer(
    trainer: PhaseTrainer, cursor: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Puts a checkpoint's cursor and tensors back into a trainer made anew."""
    trainer.update = cursor["update"]
    trainer.fake_updates.restore(cursor["fake_updates"])
    take_network(tensors, "ema", trainer.ema.network)
    for role, network in trainer.networks.items():
        take_network(tensors, role, network)
        optimizer = trainer.optimizers[role]
        content = optimizer.state_dict()
        prefix = f"optimizer.{role}."
        for name, value in tensors.items():
            if name.startswith(prefix):
                i, key = name[len(prefix) :].split(".", 1)
                content["state"].setdefault(int(i), {})[key] = value
        optimizer.load_state_dict(content)


def take_network(tensors: Mapping[str, Tensor], name: str, network: nn.Module) -> None:
    """Loads one network's tensors.

    Raises:
        ValueError: If they are not the network's.
    """
    prefix = f"network.{name}."
    state = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        last = str(error).strip().splitlines()[-1].strip()
        raise ValueError(
            f"the checkpoint's {name} does not fit the network ({last}); start again, with "
            "--overwrite"
        ) from error


def _put(tensors: dict[str, Tensor], name: str, network: nn.Module) -> None:
    for key, value in network.state_dict().items():
        tensors[f"network.{name}.{key}"] = value.detach().clone().contiguous()
