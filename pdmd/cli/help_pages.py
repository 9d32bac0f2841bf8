"""Help pages: the settings that most runs change, or all of them.

``pdmd distill`` has some 80 settings. ``--help`` shows those of :data:`COMMON`, ``--help-all``
the others too, each with its default in the chosen preset or TOML file.
"""

from __future__ import annotations

import dataclasses
import textwrap
from typing import Annotated, Any, get_type_hints

from pdmd.cli.config import DistillConfig
from pdmd.cli.config_files import key_paths

__all__ = ["COMMON", "RARE", "left_out", "shortened"]

COMMON = (
    "out",
    "teacher.name",
    "teacher.guidance",
    "teacher.negative_prompt",
    "teacher.arguments",
    "plan.phases",
    "plan.steps",
    "plan.shift",
    "objective.generator",
    "train.updates",
    "train.fake_updates",
    "train.batch_size",
    "train.lr",
    "train.fake_lr",
    "train.seed",
    "lora.rank",
    "parallel.precision",
    "evaluate.samples",
)
"""The key paths that the short help shows."""

RARE = ("checkpoint", "allow_changed")
"""The options of a command that the short help leaves out."""


def left_out() -> str:
    """Returns the settings that the short help leaves out, a line for each section."""
    sections: dict[str, list[str]] = {}
    for path in key_paths():
        section, _, key = path.rpartition(".")
        if path not in COMMON:
            sections.setdefault(section, []).append(key)
    lines = (f"- {section}: {', '.join(keys)}" for section, keys in sections.items())
    return "\n".join(textwrap.fill(line, 100, subsequent_indent="  ") for line in lines)


def shortened(value: Any, where: str = "") -> Any:
    """Returns a configuration or options of which only common keys appear in help.

    Args:
        value: An instance of :class:`~pdmd.cli.config.DistillConfig`, of one of its sections, or
            of a command's options.
        where: The key path of a section, with a dot.

    Returns:
        An instance of a subclass, with the same values.
    """
    import tyro

    cls, options = type(value), not where and not isinstance(value, DistillConfig)
    hints = get_type_hints(cls, include_extras=True)
    fields: list[tuple[str, Any, Any]] = []
    values = {}
    for field in dataclasses.fields(cls):
        path, hint, found = f"{where}{field.name}", hints[field.name], getattr(value, field.name)
        section = dataclasses.is_dataclass(hint)
        if options:
            shown = field.name not in RARE
        elif section:
            shown = any(key.startswith(f"{path}.") for key in COMMON)
            found = shortened(found, f"{path}.") if shown else found
            hint = type(found)
        else:
            shown = path in COMMON
        values[field.name] = found
        if section or not shown:
            kind = hint if shown else Annotated[hint, tyro.conf.Suppress]
            fields.append((field.name, kind, dataclasses.field(default=None)))
    page = dataclasses.make_dataclass(
        cls.__name__, fields, bases=(cls,), kw_only=True, namespace={"__doc__": cls.__doc__}
    )
    return page(**values)
