"""Settings: what may differ between the run that wrote a checkpoint and the one that resumes it.

Settings are nested JSON values; each is named by its keys, joined by dots.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any, cast

__all__ = ["UNSET", "SettingChange", "differences", "may_change"]


class Unset:
    """The value of a setting that a run does not have."""

    def __repr__(self) -> str:
        return "unset"


UNSET = Unset()
"""Stands for the value of a setting that one of two runs does not have."""

SettingChange = tuple[Any, Any]
"""The value of a setting in the checkpoint, and in the run that resumes."""


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> dict[str, SettingChange]:
    """Compares settings.

    Args:
        old: The settings of a checkpoint.
        new: The settings of the run that resumes.
        defaults: The values of settings that the checkpoint does not have, as when it was written
            by a version without them.

    Returns:
        The old and the new value of each setting that differs, by its name.
    """
    before, after = {**_flat(defaults or {}), **_flat(old)}, _flat(new)
    keys = sorted({*_flat(old), *after})
    pairs = {key: (before.get(key, UNSET), after.get(key, UNSET)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def may_change(setting: str, patterns: Collection[str]) -> bool:
    """Returns whether a setting is one of those that may change.

    Args:
        setting: The setting's name.
        patterns: Names, where ``*`` stands for any text.
    """
    return any(fnmatchcase(setting, pattern) for pattern in patterns)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(cast(Mapping[str, Any], value), f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
