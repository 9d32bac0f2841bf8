"""Values of a configuration on the command line: tables of arguments, and inline TOML."""

from __future__ import annotations

import json
import tomllib
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

from tyro.constructors import PrimitiveConstructorSpec

__all__ = [
    "Argument",
    "Arguments",
    "Plain",
    "Table",
    "Terms",
    "duration",
    "inline_toml",
    "plain_value",
    "read_value",
    "short",
    "typed_value",
]

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

Plain: TypeAlias = bool | int | float | str
"""A value of one TOML key."""

Argument: TypeAlias = Plain | dict[str, Any]
"""A value of an argument: one of a key, or a table of them, such as a network's own arguments."""


def short(value: object) -> str:
    """Returns a value as text, cut where it has very many digits."""
    text = str(value)
    return text if len(text) <= 40 else f"{text[:20]}... ({len(text)} characters)"


def plain_value(text: str) -> Plain:
    """Reads a word of the command line as a boolean, a number or text.

    Args:
        text: The word; ``true`` and ``True`` are booleans, ``3`` is an integer, ``0.5`` a float.
    """
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    readers: tuple[Callable[[str], Plain], ...] = (int, float)
    for read in readers:
        try:
            return read(text)
        except ValueError:
            continue
    return text


def typed_value(hint: Any, value: Any, where: str) -> Any:
    """Returns a plain value as the type of its key, strictly.

    Args:
        hint: The annotation of the key.
        value: The value, as TOML has it.
        where: The key path, for errors.

    Raises:
        ValueError: If it is of another type.
    """
    if hint is Any:
        return value
    origin = get_origin(hint)
    if origin is Literal:
        if not any(type(value) is type(v) and value == v for v in get_args(hint)):
            options = ", ".join(map(repr, get_args(hint)))
            raise ValueError(f"{where} is one of {options}, got {value!r}")
        return value
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(
            typed_value(get_args(hint)[0], v, f"{where}[{i}]") for i, v in enumerate(items)
        )
    if origin is dict:
        if isinstance(value, str) and get_args(hint)[1] is Any:  # the name of an object
            return {"name": value}
        if not isinstance(value, dict):
            raise ValueError(f"{where} is a table of names and values, got {value!r}")
        return {k: typed_value(get_args(hint)[1], v, f"{where}.{k}") for k, v in value.items()}
    if origin in (Union, types.UnionType):
        kinds = tuple(get_origin(kind) or kind for kind in get_args(hint))
        if not isinstance(value, kinds):
            table = ", or a table" if dict in kinds else ""
            raise ValueError(f"{where} is a number, text or boolean{table}, got {value!r}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise ValueError(f"{where} is too large a number: {short(value)}") from error
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        noun = {int: "a whole number", float: "a number", str: "text"}.get(hint, hint.__name__)
        raise ValueError(f"{where} is {noun}, got {value!r}")
    return value


def duration(text: str, where: str) -> float:
    """Reads a duration, in seconds.

    Args:
        text: A number and its unit, s, m, h or d, such as ``90s`` or ``1.5h``.
        where: The key, for errors.

    Raises:
        ValueError: If it is not one, or is not positive.
    """
    number, unit = text[:-1], text[-1:]
    try:
        seconds = float(number) * SECONDS[unit]
    except (KeyError, ValueError):
        seconds = 0.0
    if not 0 < seconds < 10**9:
        raise ValueError(
            f"{where} is a positive number and its unit, s, m, h or d, such as 10m; got "
            f"{short(text)!r}"
        )
    return seconds


def inline_toml(value: Any) -> str:
    """Writes a value as TOML on a single line, tables as ``{key = value}``."""
    if isinstance(value, Mapping):
        pairs = (f"{key} = {inline_toml(item)}" for key, item in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(inline_toml, value)) + "]"
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False)
    return repr(value)


def read_value(text: str) -> Any:
    """Reads a word of the command line as TOML's value; a name needs no quotes.

    Raises:
        ValueError: If it is not one.
    """
    if text.isidentifier():  # a name needs no quotes
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{text!r} is not inline TOML: {error}") from error


def _read_terms(words: list[str]) -> tuple[Any, ...]:
    value = read_value(words[0])
    return tuple(value) if isinstance(value, list) else (value,)


def _read_table(words: list[str]) -> dict[str, Any]:
    value = read_value(words[0])
    return value if isinstance(value, dict) else {"name": value}


def _read_arguments(words: list[str]) -> dict[str, Plain]:
    if len(words) % 2:
        raise ValueError(f"give a value for each name, got {' '.join(words)!r}")
    return {name: plain_value(value) for name, value in zip(words[::2], words[1::2], strict=True)}


Arguments = Annotated[
    dict[str, Argument],
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME VALUE ...",
        instance_from_str=_read_arguments,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [str(word) for pair in value.items() for word in pair],
    ),
]
"""Arguments by name: ``--teacher.arguments dim 2 modes 4``, or ``--teacher.arguments.dim 2``."""

Terms = Annotated[
    tuple[Any, ...],
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="'[{name = NAME, ...}, ...]'",
        instance_from_str=_read_terms,
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [inline_toml(value)],
    ),
]
"""A list of tables as inline TOML: ``--objective.generator '[{name = "repulsion"}]'``."""

Table = Annotated[
    dict[str, Any],
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="'{name = NAME, ...}'",
        instance_from_str=_read_table,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [inline_toml(value)],
    ),
]
"""A table as inline TOML: ``--objective.critic '{name = "mlp", width = 32}'``."""
