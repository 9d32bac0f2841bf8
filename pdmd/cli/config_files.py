"""Configuration files: strictly read TOML, and the shipped presets."""

from __future__ import annotations

import dataclasses
import difflib
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pdmd.cli.config import DistillConfig
from pdmd.cli.renamed_keys import check_renamed, proposals
from pdmd.cli.values import typed_value
from pdmd.documents import read_toml
from pdmd.files import write_file

__all__ = ["key_paths", "load_config", "presets", "read_config", "same_config", "write_config"]

T = TypeVar("T")


def presets() -> dict[str, Path]:
    """Returns the shipped presets, name to file."""
    folder = Path(str(resources.files("pdmd.cli"))) / "presets"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_config(name: str) -> DistillConfig:
    """Loads a preset by name, a TOML file by path, or the configuration of a run by its folder.

    A ``config.toml`` beside the ``plan.json`` of a run is that of the run, which may have been
    moved or copied: its folder is ``out``.

    Raises:
        ValueError: If it is neither, or its content is not a configuration.
    """
    path = presets().get(name)
    if path is None:
        path = Path(name)
        if (path / "config.toml").is_file():
            config = read_config(read_toml(path / "config.toml")[1])
            config.out = name
            return config
        if not path.is_file():
            near = difflib.get_close_matches(name, presets(), n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"{name!r} is neither a preset nor a TOML file nor a run: {hint}presets are "
                f"{', '.join(presets())}"
            )
    data = read_toml(path)[1]
    if not data:
        raise ValueError(f"{path} is empty; restore it, or name a preset ({', '.join(presets())})")
    config = read_config(data)
    if path.name == "config.toml" and (path.parent / "plan.json").is_file():
        config.out = str(path.parent)
    config.out = config.out or f"runs/{path.stem}"
    return config


def read_config(data: dict[str, Any]) -> DistillConfig:
    """Builds a configuration from plain values, strictly.

    Raises:
        ValueError: If a key is unknown or renamed, or a value has the wrong type.
    """
    return _read(DistillConfig, data, "")


def write_config(config: DistillConfig, path: Path) -> None:
    """Writes the resolved configuration as TOML."""
    import tomli_w

    write_file(path, tomli_w.dumps(dataclasses.asdict(config)))


def same_config(config: DistillConfig, path: Path) -> bool:
    """Returns whether a TOML file has a configuration, but for its ``out``."""
    try:
        return dataclasses.replace(read_config(read_toml(path)[1]), out=config.out) == config
    except (OSError, ValueError):
        return False


def key_paths(cls: Any = DistillConfig, where: str = "") -> list[str]:
    """Returns the key paths of a configuration, such as ``train.lr``."""
    paths: list[str] = []
    for key, hint in get_type_hints(cls).items():
        path = f"{where}{key}"
        paths += key_paths(hint, f"{path}.") if dataclasses.is_dataclass(hint) else [path]
    return paths


def _read(cls: type[T], data: Any, where: str) -> T:
    if not isinstance(data, dict):
        raise ValueError(f"{where} is a section, got {data!r}; write [{where}] and its keys")
    hints = get_type_hints(cls)
    values = {}
    for key, value in data.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in hints:
            check_renamed(path)
            near = difflib.get_close_matches(key, hints, n=1) if isinstance(value, dict) else ()
            meant = [f"{where}.{name}" if where else name for name in near]
            found = " or ".join(map(repr, meant or proposals(path, key_paths())))
            hint = f"did you mean {found}? " if found else ""
            raise ValueError(f"unknown key {path!r}: {hint}known are {', '.join(hints)}")
        values[key] = _value(hints[key], value, path)
    return cls(**values)


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _read(hint, value, where)  # type: ignore[arg-type]
    return typed_value(hint, value, where)
