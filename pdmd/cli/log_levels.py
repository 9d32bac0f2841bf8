"""The option ``--log-level`` of every command: which messages of libraries are shown.

Progress, results and errors of ``pdmd`` are shown at every level. The level is that of Python's
loggers, ``pdmd``'s and those of the libraries, and of warnings, which count as of level warning.
"""

from __future__ import annotations

import logging

from pdmd.cli.arguments import UsageError

__all__ = ["LEVELS", "take_log_level"]

LEVELS = ("debug", "info", "warning", "error")
"""The levels, the most messages first."""

OPTION = "--log-level"


def take_log_level(words: list[str]) -> list[str]:
    """Applies ``--log-level LEVEL``, wherever it stands; without it nothing is changed.

    Args:
        words: The words of the command line.

    Returns:
        The other words.

    Raises:
        UsageError: If there is no such level.
    """
    rest, level = [], None
    following = iter(words)
    for word in following:
        name, equals, value = word.partition("=")
        if name == OPTION:
            level = value if equals else next(following, "")
        else:
            rest.append(word)
    if level is None:
        return rest
    if level not in LEVELS:
        raise UsageError(f"{OPTION} is one of {', '.join(LEVELS)}, got {level!r}")
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    logging.captureWarnings(True)
    logging.getLogger().setLevel(level.upper())
    return rest
