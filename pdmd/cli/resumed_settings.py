"""Resumed settings: which may differ from those of the run that wrote the checkpoint.

Settings of :data:`FREE` do not change the numbers of a run, up to rounding. Those of
:data:`CHANGEABLE` do, and a run may go on with others: the difference is printed. Any other
difference is an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pdmd.cli.config import DistillConfig
from pdmd.cli.config_sections.phase_settings import changed_settings
from pdmd.training.checkpoints.settings import SettingChange, may_change

__all__ = ["CHANGEABLE", "FREE", "describe_changes", "fingerprint"]

FREE = (
    "out",
    "evaluate",
    "evaluate.*",
    "health",
    "health.*",
    "validation",
    "validation.*",
    "tracking",
    "tracking.*",
    "teacher.check_score",
    "train.buffer_folder",
    "train.checkpoint_*",
    "train.max_consecutive_skips",
    "train.save_before",
    "train.time_limit",
)
"""Settings that are not compared; nor are those of ``[parallel]`` but its precision."""

CHANGEABLE = (
    "train.lr",
    "train.fake_lr",
    "train.*.warmup",
    "train.*.lr_decay*",
    "train.updates",
    "train.update_shares",
    "train.phase.*.lr",
    "train.phase.*.fake_lr",
    "train.phase.*.updates",
    "train.batch_size",
)
"""Settings that may change on resuming, and are reported if they do."""

NOTES = {
    "train.updates": "phases that are finished stay as they are",
    "train.update_shares": "phases that are finished stay as they are",
    "train.phase.*": "phases that are finished stay as they are",
    "train.batch_size": "other samples are drawn than without the change",
}


def fingerprint(config: DistillConfig) -> dict[str, Any]:
    """Returns the settings that determine the numbers of a run, up to rounding."""
    settings = dataclasses.asdict(config)
    settings["parallel"] = {"precision": config.parallel.precision}
    settings["train"]["phase"] = changed_settings(config.train)
    return _without_free(settings, "")


def describe_changes(changes: Mapping[str, SettingChange]) -> list[str]:
    """Returns a line for each setting that a resumed run changes."""
    return [
        f"resuming with {key} = {now!r} ({then!r} before)"
        + "".join(f"; {note}" for name, note in NOTES.items() if may_change(key, [name]))
        for key, (then, now) in changes.items()
    ]


def _without_free(settings: dict[str, Any], prefix: str) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in settings.items():
        if not may_change(f"{prefix}{key}", FREE):
            inner = isinstance(value, dict)
            kept[key] = _without_free(value, f"{prefix}{key}.") if inner else value
    return kept
