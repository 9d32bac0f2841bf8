"""The tables ``[[train.phase]]``: settings of ``[train]`` that differ in some phases.

A table names its phases, counted from 1, and has any of the keys :data:`KEYS` with the values that
they have there::

    [[train.phase]]
    phases = [2]
    lr = 5e-5
    fake_updates = 3
    fake = {betas = [0.9, 0.95], warmup = 10}
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, TypeVar, cast, get_type_hints

from pdmd.cli.config_sections.optimizer import OptimizerConfig
from pdmd.cli.values import short, typed_value

__all__ = ["KEYS", "changed_settings", "in_phase", "settings_by_phase"]

KEYS = ("lr", "fake_lr", "updates", "fake_updates", "fake_error_tolerance", "generator", "fake")
"""The keys of ``[train]`` that may differ between phases."""

Settings = dict[str, Any]
T = TypeVar("T")


def settings_by_phase(train: Any, phases: int | None = None) -> dict[int, dict[str, Any]]:
    """Returns the settings of ``[[train.phase]]`` by phase, counted from 1.

    Args:
        train: The section.
        phases: The number of phases; unknown by default.

    Raises:
        ValueError: If a phase does not exist, a key is unknown, has a value of another type, or is
            set twice for a phase.
    """
    found: dict[int, Settings] = {}
    for i, table in enumerate(train.phase):
        where = f"train.phase[{i + 1}]"
        if not isinstance(table, Mapping) or "phases" not in table:
            raise ValueError(
                f"{where} is a table of phases and their settings, such as {{phases = [2], lr = "
                f"5e-5}}, got {short(table)}"
            )
        table = cast("Mapping[str, Any]", table)
        own = {key: value for key, value in table.items() if key != "phases"}
        settings = _typed(type(train), own, where, KEYS)
        for number in _numbers(table["phases"], where, phases):
            into = found.setdefault(number, {})
            for key, value in settings.items():
                _merge(into, key, value, f"{where}.{key}", number)
    return dict(sorted(found.items()))


def in_phase(train: T, settings: Mapping[str, Any]) -> T:
    """Returns the section ``[train]`` as it is in a phase.

    Args:
        train: The section.
        settings: The phase's own settings, of :func:`settings_by_phase`.
    """
    values = {
        key: dataclasses.replace(getattr(train, key), **value)
        if isinstance(value, dict)
        else value
        for key, value in settings.items()
    }
    section: Any = train
    return dataclasses.replace(section, **values, phase=())


def changed_settings(train: Any) -> dict[str, dict[str, Any]]:
    """Returns the settings of phases that are not those of the section, by phase as text."""
    return {
        str(number): changed
        for number, settings in settings_by_phase(train).items()
        if (changed := _changed(train, settings))
    }


def _changed(section: object, settings: Settings) -> Settings:
    changed: Settings = {}
    for key, value in settings.items():
        usual = getattr(section, key)
        nested = isinstance(usual, OptimizerConfig)
        value = _changed(usual, value) if nested else value
        if value != ({} if nested else usual):
            changed[key] = value
    return changed


def _typed(cls: type, table: Any, where: str, keys: tuple[str, ...]) -> Settings:
    if not isinstance(table, Mapping):
        raise ValueError(f"{where} is a table of keys and values, got {short(table)}")
    hints = get_type_hints(cls)
    settings: Settings = {}
    for key, value in cast("Mapping[str, Any]", table).items():
        path = f"{where}.{key}"
        if key not in keys:
            near = difflib.get_close_matches(str(key), keys, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"unknown key {path!r}: {hint}known are {', '.join(keys)}")
        if dataclasses.is_dataclass(hints[key]):
            names = tuple(field.name for field in dataclasses.fields(hints[key]))
            settings[key] = _typed(cast(type, hints[key]), value, path, names)
        else:
            settings[key] = typed_value(hints[key], value, path)
    return settings


def _numbers(value: Any, where: str, phases: int | None) -> list[int]:
    numbers: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
    for number in numbers:
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ValueError(f"{where}.phases are whole numbers from 1, got {short(value)}")
        if phases is not None and number > phases:
            raise ValueError(f"{where}.phases has {number}, but the plan has {phases} phases")
    if not numbers:
        raise ValueError(f"{where}.phases is empty; name the phases, counted from 1")
    return numbers


def _merge(into: Settings, key: str, value: Any, where: str, number: int) -> None:
    if isinstance(value, dict) and key in ("generator", "fake"):
        nested = into.setdefault(key, {})
        for inner, part in cast(Settings, value).items():
            _merge(nested, inner, part, f"{where}.{inner}", number)
        return
    if key in into:
        raise ValueError(f"{where} is set twice for phase {number}; set it in one table")
    into[key] = value
