"""Arguments: the words of a command line, read into dataclasses."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from typing import Annotated, Any

__all__ = [
    "UsageError",
    "check_numbers",
    "no_more",
    "one_line",
    "parse",
    "parse_config",
    "take_name",
]


class UsageError(ValueError):
    """The command line's words are off."""


def take_name(words: list[str], what: str, default: str | None = None) -> tuple[str, list[str]]:
    """Takes the leading word that is no option.

    Args:
        words: The words.
        what: What the word is, as the error names it.
        default: The word where there is none; ``None`` requires one, help apart.

    Returns:
        The word and the words after it.

    Raises:
        UsageError: If it is missing.
    """
    if words and not words[0].startswith("-"):
        return words[0], words[1:]
    if default is None and not {"-h", "--help"} & set(words):
        raise UsageError(f"missing {what}")
    return default or "", words


def no_more(words: list[str]) -> None:
    """Refuses words that a command has no use for.

    Raises:
        UsageError: If there is one.
    """
    if words:
        raise UsageError(f"unexpected {words[0]!r}; it takes no more words")


def check_numbers(options: Any, **ranges: tuple[int, int]) -> None:
    """Checks that whole numbers among options are in their ranges.

    Raises:
        ValueError: If one is not.
    """
    for name, (low, high) in ranges.items():
        value = getattr(options, name)
        if not low <= value <= high:
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} is from {low:,} to {high:,}, got {value}")


def parse(
    cls: Any, words: list[str], prog: str, default: Any = None, *, flat: bool = False
) -> Any:
    """Reads words into a dataclass.

    Args:
        cls: The dataclass.
        words: The words.
        prog: The command, as its help names it.
        default: Supplies the defaults; ``cls()`` by default.
        flat: Whether fields of inner dataclasses go by their own names.

    Returns:
        An instance of ``cls``.

    Raises:
        UsageError: If the words do not fit; one sentence.
        SystemExit: If help was asked for and printed.
    """
    import tyro

    caught = io.StringIO()
    try:
        with contextlib.redirect_stderr(caught):
            return tyro.cli(
                cls,
                args=words,
                prog=prog,
                default=default if default is not None else cls(),
                config=(tyro.conf.AvoidSubcommands, tyro.conf.OmitArgPrefixes)
                if flat
                else (tyro.conf.AvoidSubcommands,),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        command = prog.split(" [")[0]
        raise UsageError(
            f"{_plain(caught.getvalue())} ('{command} --help' lists the options)"
        ) from None


def _plain(text: str) -> str:
    """Reduces tyro's framed message to its sentence."""
    text = re.sub(r"[─-╿]|-{4,}", " ", re.sub(r"\x1b\[[0-9;]*m", "", text))
    text = re.split(r"Argument helptext:|For full helptext", " ".join(text.split()))[0]
    heads = r"^((Parsing error|Value error|Error parsing|Invalid choice|Unrecognized options) )+"
    return re.sub(heads, "", text).strip()[:400]


def one_line(error: BaseException) -> str:
    """Returns an error's message on a single line."""
    return " ".join(str(error).split())


def parse_config(words: list[str], name: str, options: Any, doc: str | None) -> Any:
    """Reads a configuration's name and overrides, beside options of a command's own."""
    import tyro

    from pdmd.cli.config import DistillConfig
    from pdmd.cli.config_files import load_config

    chosen, rest = take_name(words, "a preset or TOML file", "digits")
    config = load_config(chosen)
    command = dataclasses.make_dataclass(
        name.capitalize(),
        [
            ("options", Annotated[type(options), tyro.conf.arg(name="")]),
            ("config", Annotated[DistillConfig, tyro.conf.arg(name="")]),
        ],
    )
    command.__doc__ = doc
    return parse(command, rest, f"pdmd {name} [PRESET_OR_TOML]", command(options, config))
