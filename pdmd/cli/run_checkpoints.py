"""Checkpoints of a run: where its configuration keeps them, when, and what must stay equal."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pdmd.cli.config import DistillConfig
from pdmd.cli.config_sections.train import TrainConfig
from pdmd.cli.resumed_settings import CHANGEABLE
from pdmd.cli.resumed_settings import fingerprint as settings_of
from pdmd.training.checkpoints.checkpointer import Checkpointer
from pdmd.training.checkpoints.store import Store

__all__ = ["build_checkpointer", "leave_checkpoints"]


def build_checkpointer(
    train: TrainConfig,
    folder: Path,
    *,
    began: float,
    fingerprint: Mapping[str, Any],
    allow_changed: bool = False,
    name: str = "",
) -> Checkpointer:
    """Builds the checkpointer of a run, on all ranks together.

    Args:
        train: The configuration of the training.
        folder: The run folder.
        began: When the run began, in seconds of Unix time.
        fingerprint: The settings on which the numbers depend.
        allow_changed: Whether to resume although inputs have changed.
        name: The checkpoint to resume from; the newest by default.

    Raises:
        ValueError: If checkpoints cannot be kept where the configuration says.
    """
    store = Store(
        train.checkpoint_folder or folder / "checkpoint",
        keep=max(1, train.checkpoint_keep),
        asynchronous=train.checkpoint_async,
        probe=bool(train.checkpoint_folder),  # the run folder does not exist yet
    )
    return Checkpointer(
        store,
        every=train.build_interval(),
        limit=train.build_time_limit(began),
        fingerprint=fingerprint,
        name=name,
        may_change=CHANGEABLE,
        defaults=settings_of(DistillConfig()),
        allow_changed=allow_changed,
    )


def leave_checkpoints(checkpointer: Checkpointer, folder: Path, keep: int) -> None:
    """Leaves the last checkpoint of a finished run, from which it may be trained longer, or none.

    Args:
        checkpointer: The run's checkpointer, of the main rank alone.
        folder: The run folder.
        keep: How many the configuration keeps.
    """
    if keep:
        checkpointer.keep_last()
        return
    checkpointer.clear()
    with contextlib.suppress(OSError):  # it is elsewhere, or has files of the user
        (folder / "checkpoint").rmdir()
