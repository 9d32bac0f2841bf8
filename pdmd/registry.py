"""Registries: a name for the command line, a class behind it.

Names exist for configuration files and the command line only; in Python, objects are passed
directly. A built-in entry is a string ``"module:attribute"``, imported when first asked for, so
that listing names loads nothing.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

__all__ = ["Registry"]

T = TypeVar("T")
C = TypeVar("C")


class Registry(Generic[T]):
    """A mapping from names to classes or factories of one kind.

    Args:
        noun: What is registered, as errors name it (for example ``"teacher"``).
        builtin: Lazy entries, name to ``"module:attribute"``.
    """

    def __init__(self, noun: str, builtin: Mapping[str, str] | None = None) -> None:
        self.noun = noun
        self._entries: dict[str, Any] = dict(builtin or {})

    def register(self, name: str) -> Callable[[C], C]:
        """Decorates a class or factory to enter it under ``name``.

        Raises:
            ValueError: If the name is taken.
        """
        if name in self._entries:
            raise ValueError(
                f"the {self.noun} name {name!r} is already registered; choose another name"
            )

        def enter(item: C) -> C:
            self._entries[name] = item
            return item

        return enter

    def __getitem__(self, name: str) -> T:
        """Looks a name up.

        Raises:
            ValueError: If nothing is registered under the name; the message lists what is.
        """
        if name not in self._entries:
            near = difflib.get_close_matches(name, self._entries, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"unknown {self.noun} {name!r}: {hint}registered are {', '.join(sorted(self))}"
            )
        entry = self._entries[name]
        if isinstance(entry, str):
            module, attribute = entry.split(":")
            item: Any = importlib.import_module(module)
            for part in attribute.split("."):
                item = getattr(item, part)
            entry = self._entries[name] = item
        return entry

    def get(self, name: str) -> T:
        """Looks a name up, as indexing does."""
        return self[name]

    def names(self) -> tuple[str, ...]:
        """Returns every registered name."""
        return tuple(self._entries)

    def remove(self, name: str) -> None:
        """Takes a name out again.

        Raises:
            ValueError: If nothing is registered under the name.
        """
        self[name]
        del self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)
