"""Extras: what a feature needs beyond the core, and how to install it.

``pip install pdmd`` brings the packages of the core. Every module that imports another package
calls :func:`require` first, so that where it is missing, the error states in one line which extra
of ``pyproject.toml`` contains it.
"""

from __future__ import annotations

import importlib.util
import sys

__all__ = ["MissingExtra", "require"]


class MissingExtra(ModuleNotFoundError, ValueError):
    """A package is not installed that an extra of ``pdmd`` contains."""


def require(extra: str, *packages: str, alternative: str = "") -> None:
    """Raises an error unless packages can be imported; imports none of them.

    Args:
        extra: The extra that contains them.
        *packages: Their names in imports, such as ``sklearn``.
        alternative: What can be done without them, for the message.

    Raises:
        MissingExtra: If one is missing.
    """
    missing = [package for package in packages if not _is_installed(package)]
    if missing:
        raise MissingExtra(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed; run "
            f"`pip install 'pdmd[{extra}]'`{alternative and f', or {alternative}'}",
            name=missing[0],
        )


def _is_installed(package: str) -> bool:
    if package in sys.modules:
        return sys.modules[package] is not None
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:
        return False
