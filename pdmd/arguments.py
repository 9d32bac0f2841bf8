"""Arguments of public calls, checked against their annotations.

A class where an instance belongs, a name where an object belongs, a fraction where a number of
updates belongs: the error names the argument and its value before any work starts. Annotations of
other kinds, such as tensors and foreign objects, are checked where they are used.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

import torch

__all__ = ["WrongArgument", "at_least", "check_instance", "checked", "describe", "describe_error"]

F = TypeVar("F", bound=Callable[..., Any])
_FOREIGN: dict[Any, str] = {
    torch.Tensor: "a torch.Tensor",
    torch.Generator: "a torch.Generator",
    torch.dtype: "a torch.dtype",
    torch.nn.Module: "a torch.nn.Module",
    Path: "a path",
}
"""Classes of other packages whose instances are checked, and what they are called."""

_BY_CLASS = (torch.nn.Module, torch.Generator)
"""Classes of which every instance is right where one was."""


class WrongArgument(TypeError, ValueError):
    """An argument of another type or size than its annotation.

    It is a ``ValueError`` too, since the argument may be a value of a configuration.
    """


def checked(target: F) -> F:
    """Decorates a function, or a class whose constructor's arguments are checked.

    Raises:
        TypeError: By a call, if an argument is of another type than its annotation.
        ValueError: By a call, if a number is NaN.
    """
    if inspect.isclass(target):
        cls: Any = target
        cls.__init__ = _checked_call(cls.__init__, None)
        return cls
    return _checked_call(target, target.__qualname__)  # type: ignore[return-value]


def at_least(least: int, **counts: int) -> None:
    """Checks that counts are not below a number.

    Args:
        least: The number.
        counts: The counts by name.

    Raises:
        ValueError: If one is below it.
    """
    for name, count in counts.items():
        if count < least:
            raise ValueError(f"{name} must be at least {least}, got {count}")


def check_instance(name: str, value: object, kind: type) -> None:
    """Checks the class of an argument, for calls too frequent for :func:`checked`.

    Raises:
        TypeError: If it is of another.
    """
    if not isinstance(value, kind):
        wanted = f"an instance of {kind.__name__}"
        raise WrongArgument(f"{name} takes {wanted}, got {describe(value)}; pass {wanted}")


def describe(value: object) -> str:
    """Returns a value for an error, in one line; a class is named as one."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, torch.Tensor) and value.numel() > 1:
        return f"a tensor of shape {tuple(value.shape)}"
    return f"{' '.join(repr(value).split()):.80}"


def describe_error(error: BaseException) -> str:
    """Returns an error of foreign code for a message: its class and text, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split()):.200}"


def _checked_call(function: Any, name: str | None) -> Any:
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    single = {p.name for p in parameters if p.kind not in several}
    positional = [p.name for p in parameters if p.kind not in (p.KEYWORD_ONLY, *several)]

    @functools.cache
    def kinds() -> dict[str, Any]:
        try:
            hints = typing.get_type_hints(function)
        except NameError:  # names that only a type checker imports
            scope = {**vars(typing), **getattr(function, "__globals__", {})}
            hints = {}
            for key, hint in getattr(function, "__annotations__", {}).items():
                try:
                    hints[key] = eval(hint, scope) if isinstance(hint, str) else hint
                except NameError:
                    continue
        stated = getattr(function, "__annotations__", {})
        for key, hint in stated.items():  # of a package that is imported where it is used
            if hint in ("Condition", "TensorDict", "Conditions | None", "TensorDict | None"):
                hints[key] = "TensorDict" if hint == "TensorDict" else "Condition"
        return {k: v for k, v in hints.items() if k in single}

    passed: set[tuple[str, type]] = set()  # arguments that were right, whose class decides it

    @functools.wraps(function)
    def call(*args: Any, **more: Any) -> Any:
        hints, values = kinds(), list(args)
        for place, key in (*enumerate(positional[: len(args)]), *((None, key) for key in more)):
            value = more[key] if place is None else args[place]
            kind = hints.get(key)
            if kind is not None and (key, type(value)) not in passed:
                # a subclass is named, not the class whose constructor it shares
                owner = type(args[0]).__name__ if name is None else name
                _check(f"{owner}: {key}", value, kind)
                if isinstance(value, _BY_CLASS) or (
                    isinstance(value, torch.Tensor) and torch.Tensor in _alternatives(kind)
                ):
                    passed.add((key, type(value)))
                elif isinstance(value, Real) and not isinstance(value, int | float):
                    number = _python_number(value, kind)
                    if place is None:
                        more[key] = number
                    else:
                        values[place] = number
        return function(*values, **more)

    return call


def _python_number(value: Real, kind: Any) -> Any:
    """Returns a number of another library as Python's, where an annotation takes numbers."""
    kinds = _alternatives(kind)
    if int in kinds and isinstance(value, Integral):
        return int(value)
    return float(value) if float in kinds else value


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """Returns the annotations of a union, or the one that is none."""
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return typing.get_args(kind) if union else (kind,)


def _check(name: str, value: Any, kind: Any) -> None:
    wanted = _mismatch(value, kind)
    if wanted is not None:
        hint = ""
        if isinstance(value, type) and wanted.startswith("an instance"):
            hint = f", as by {value.__name__}()"
        if isinstance(value, str) and "sequence" in wanted:
            hint = f", such as a list: [{describe(value)}]"
        raise WrongArgument(f"{name} takes {wanted}, got {describe(value)}; pass {wanted}{hint}")
    if isinstance(value, Real) and not isinstance(value, int) and math.isnan(value):
        raise ValueError(f"{name} is {value}; pass a number")


def _mismatch(value: Any, kind: Any) -> str | None:
    """Returns what an annotation takes if a value is not of it, else ``None``."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        wanted = [_mismatch(value, part) for part in typing.get_args(kind)]
        return None if None in wanted else " or ".join(dict.fromkeys(w for w in wanted if w))
    if kind is None or kind is type(None):
        return None if value is None else "None"
    if kind is bool:
        return None if isinstance(value, bool) else "True or False"
    if kind is int:
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not whole:
            return "an integer"
        return None if abs(int(value)) < 1 << 64 else "an integer of at most 64 bits"
    if kind is float:
        real = isinstance(value, Real) and not isinstance(value, bool)
        large = real and isinstance(value, Integral) and abs(int(value)) >= 1 << 1023
        return None if real and not large else "a number"
    if kind is str:
        return None if isinstance(value, str) else "a text"
    if isinstance(kind, typing.TypeVar):
        return None if kind.__bound__ is None else _mismatch(value, kind.__bound__)
    if kind in ("Condition", "TensorDict"):
        batched = hasattr(value, "batch_size") or hasattr(value, "conditions")
        absent = value is None and kind == "Condition"
        return None if batched or absent else "a TensorDict, as a teacher's encode() returns"
    if isinstance(kind, type) and kind in _FOREIGN:
        return None if isinstance(value, kind) else _FOREIGN[kind]
    if origin in (collections.abc.Iterable, collections.abc.Collection):
        if isinstance(value, str | bytes | type) or not hasattr(value, "__iter__"):
            return "an iterable"
        return (
            None
            if isinstance(value, collections.abc.Iterator)
            else _items(value, typing.get_args(kind)[0])
        )
    if origin in (collections.abc.Mapping, dict):
        return None if isinstance(value, collections.abc.Mapping) else "a mapping"
    if origin is type:
        (base,) = typing.get_args(kind)
        known = isinstance(value, type) and (not isinstance(base, type) or issubclass(value, base))
        return None if known else f"a class of {getattr(base, '__name__', base)}"
    if origin in (tuple, list, collections.abc.Sequence) or kind in (tuple, list):
        if origin is tuple and isinstance(value, torch.Tensor):
            return "a tuple"
        return _sequence_mismatch(value, typing.get_args(kind))
    if origin is collections.abc.Callable:
        return None if callable(value) else "a function"
    known = isinstance(kind, type) and kind.__module__.partition(".")[0] == "pdmd"
    if known and not getattr(kind, "_is_protocol", False) and not isinstance(value, kind):
        return f"an instance of {kind.__name__}"
    return None


def _sequence_mismatch(value: Any, parts: tuple[Any, ...]) -> str | None:
    unordered = (str, bytes, type, collections.abc.Mapping, collections.abc.Set)
    listed = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    listed = listed and getattr(value, "ndim", 1) > 0  # an array of one number has no length
    if isinstance(value, unordered) or not listed:
        return "a sequence"
    if isinstance(value, torch.Tensor):
        whole = int in parts and float not in parts
        numbers = not parts or any(part in (int, float, Any) for part in parts)
        real = numbers and not value.is_complex() and value.dtype is not torch.bool
        real = real and not (whole and value.is_floating_point())
        return None if real and value.ndim == 1 and not value.is_meta else "a sequence"
    if not parts:
        return None
    kind = parts[0]
    same = all(part in (kind, Ellipsis) for part in parts)
    if Ellipsis not in parts and len(parts) > 1 and len(value) != len(parts):
        return f"a sequence of {len(parts)}"
    if not same or len(value) > 10_000:
        return None
    return _items(value, kind)


def _items(values: Any, kind: Any) -> str | None:
    for item in () if kind is Any else values:
        wanted = _mismatch(item, kind)
        if wanted is not None:
            return f"a sequence, each {wanted}"
    return None
