"""Registries: names of classes and factories for configuration files and the command line.

In Python, objects are passed directly. A built-in item is a string ``"module:attribute"``,
imported on first access, so that listing names imports nothing.
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
        noun: The kind of item, for error messages (for example ``"teacher"``).
        builtin: Lazily imported items: name to ``"module:attribute"``.
    """

    def __init__(self, noun: str, builtin: Mapping[str, str] | None = None) -> None:
        self.noun = noun
        self._items: dict[str, Any] = dict(builtin or {})

    def register(self, name: str) -> Callable[[C], C]:
        """Returns a decorator that registers a class or factory as ``name``.

        Raises:
            ValueError: If the name is already registered.
        """
        if not isinstance(name, str):
            raise TypeError(f"a name of a {self.noun} is a text, got {name!r:.60}; pass one")
        if name in self._items:
            raise ValueError(
                f"the {self.noun} name {name!r} is already registered; choose another name"
            )

        def decorator(item: C) -> C:
            self._items[name] = item
            return item

        return decorator

    def __getitem__(self, name: str) -> T:
        """Returns the item registered as ``name``, imported if need be.

        Raises:
            ValueError: If the name is not registered; the message lists the names that are.
        """
        if not isinstance(name, str):
            raise TypeError(f"a name of a {self.noun} is a text, got {name!r:.60}; pass one")
        if name not in self._items:
            near = difflib.get_close_matches(name, self._items, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"unknown {self.noun} {name!r}: {hint}registered: {', '.join(sorted(self))}"
            )
        item = self._items[name]
        if isinstance(item, str):
            module, attribute = item.split(":")
            loaded: Any = importlib.import_module(module)
            for part in attribute.split("."):
                loaded = getattr(loaded, part)
            item = self._items[name] = loaded
        return item

    def get(self, name: str) -> T:
        """Returns the item registered as ``name``, as indexing does."""
        return self[name]

    def names(self) -> tuple[str, ...]:
        """Returns all registered names."""
        return tuple(self._items)

    def remove(self, name: str) -> None:
        """Removes a name.

        Raises:
            ValueError: If the name is not registered.
        """
        self[name]
        del self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __len__(self) -> int:
        return len(self._items)
