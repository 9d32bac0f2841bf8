"""Arguments: the words of a command line, parsed into dataclasses."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import io
import re
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from pdmd.cli.renamed_keys import check_options
from pdmd.cli.values import Table, read_value

if TYPE_CHECKING:
    from pdmd.cli.config import DistillConfig

__all__ = [
    "HelpPrinted",
    "UsageError",
    "check_numbers",
    "gather_arguments",
    "no_more",
    "one_line",
    "parse",
    "parse_config",
    "table_paths",
    "take_name",
    "take_table_keys",
]

ARGUMENTS = re.compile(r"--((?:\w+\.)?arguments)(?:\.([\w-]+))?(?:=(.*))?", re.DOTALL)
"""An option that takes arguments by name, with its key and value if it has them."""


HELP = ("-h", "--help")
"""Options that show the help of a command."""

ALL = "--help-all"
"""The option that shows its rare settings too."""


MORE = """These are the settings that most runs change: 'pdmd {} --help-all' shows all of them.
The others are:
{}"""
"""The end of a short help."""


class UsageError(ValueError):
    """Words of the command line that do not form a command."""


class HelpPrinted(Exception):
    """Raised after the help of a command was printed."""


def take_name(words: list[str], what: str, default: str | None = None) -> tuple[str, list[str]]:
    """Splits off the leading word that is not an option.

    Args:
        words: The words.
        what: What the word stands for, for errors.
        default: The word if there is none; ``None`` requires one, unless help is requested.

    Returns:
        The word and the words after it.

    Raises:
        UsageError: If it is missing or empty.
    """
    if words[:1] == [""]:
        raise UsageError(f"missing {what}, got ''")
    if words and not words[0].startswith("-"):
        return words[0], words[1:]
    if default is None and not {*HELP, ALL} & set(words):
        raise UsageError(f"missing {what}")
    return default or "", words


def no_more(words: list[str]) -> None:
    """Checks that there are no words left.

    Raises:
        UsageError: If there is one.
    """
    if words:
        raise UsageError(f"unexpected {words[0]!r}; it takes no more words")


def check_numbers(options: Any, **ranges: tuple[int, int]) -> None:
    """Checks the ranges of whole numbers among options.

    Args:
        options: The options.
        ranges: The lowest and the highest number, by option.

    Raises:
        ValueError: If a number is out of its range.
    """
    for name, (low, high) in ranges.items():
        value = getattr(options, name)
        if not low <= value <= high:
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} is from {low:,} to {high:,}, got {value}")


def parse(
    cls: Any, words: Sequence[str], prog: str, default: Any = None, *, flat: bool = False
) -> Any:
    """Parses words into a dataclass.

    Args:
        cls: The dataclass.
        words: The words.
        prog: The command, as its help names it.
        default: Supplies the defaults; ``cls()`` by default.
        flat: Whether options of nested dataclasses have no prefix.

    Returns:
        An instance of ``cls``.

    Raises:
        UsageError: If the words do not fit, in one sentence.
        HelpPrinted: If help was requested and printed.
    """
    import tyro

    caught, command = io.StringIO(), prog.split(" [")[0]
    if flat:
        check_options(words, _flat_names(default or cls()), f"{command} --help")
    try:
        with contextlib.redirect_stderr(caught):
            return tyro.cli(
                cls,
                args=gather_arguments([HELP[-1] if word == ALL else word for word in words]),
                prog=prog,
                default=default if default is not None else cls(),
                config=(tyro.conf.AvoidSubcommands, tyro.conf.OmitArgPrefixes)
                if flat
                else (tyro.conf.AvoidSubcommands,),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise HelpPrinted from None
        raise UsageError(
            f"{_plain(caught.getvalue())} ('{command} --help' lists the options)"
        ) from None


def _flat_names(options: Any) -> list[str]:
    """Returns the names of a dataclass's fields, and those of dataclasses within."""
    names: list[str] = []
    for one in dataclasses.fields(options):
        value = getattr(options, one.name)
        names += _flat_names(value) if dataclasses.is_dataclass(value) else [one.name]
    return names


def gather_arguments(words: Sequence[str]) -> list[str]:
    """Gathers all arguments by name of a command line under one option each.

    ``--teacher.arguments.dim 2`` and ``--teacher.arguments dim 2`` mean the same, and either may
    be repeated.

    Args:
        words: The words.

    Returns:
        The other words, then ``--teacher.arguments`` with all names and values.

    Raises:
        UsageError: If a name has no value.
    """
    rest: list[str] = []
    gathered: dict[str, list[str]] = {}
    i = 0
    while i < len(words):
        match = ARGUMENTS.fullmatch(words[i])
        i += 1
        if match is None:
            rest.append(words[i - 1])
            continue
        option, key, value = match.groups()
        pairs = gathered.setdefault(option, [])
        if key is None:
            pairs += [] if value is None else [value]
            while i < len(words) and not words[i].startswith("--"):
                pairs.append(words[i])
                i += 1
            continue
        if value is None:
            if i == len(words):
                raise UsageError(f"missing the value of {words[i - 1]}")
            value = words[i]
            i += 1
        pairs += [key.replace("-", "_"), value]
    for option, pairs in gathered.items():
        rest += [f"--{option}", *pairs]
    return rest


def _plain(text: str) -> str:
    """Reduces tyro's framed message to its sentence."""
    text = re.sub(r"[─-╿]|-{4,}", " ", re.sub(r"\x1b\[[0-9;]*m", "", text))
    text = re.split(r"Argument helptext:|For full helptext", " ".join(text.split()))[0]
    heads = r"^((Parsing error|Value error|Error parsing|Invalid choice|Unrecognized options) )+"
    text = re.sub(heads, "", text).strip()
    unread = r"Could not find valid parse for arguments: \[(.*?)\]"
    return re.sub(unread, r"cannot read \1 as its value", text)[:400]


def one_line(error: BaseException) -> str:
    """Returns an error's message on a single line."""
    return " ".join(str(error).split())


def parse_config(
    words: list[str],
    name: str,
    options: Any,
    doc: str | None,
    *,
    prepare: Callable[[DistillConfig], DistillConfig] | None = None,
) -> Any:
    """Parses the name of a configuration, its overrides and the options of a command.

    Args:
        words: The words after the command.
        name: The command.
        options: Defaults of its options, a dataclass.
        doc: The description that the help shows.
        prepare: Changes the configuration that was named, before its overrides.

    Returns:
        An object with ``options`` and ``config``.

    Raises:
        ValueError: If there is no such configuration, or the words do not fit.
        HelpPrinted: If help was requested and printed.
    """
    import tyro

    from pdmd.cli.config import DistillConfig
    from pdmd.cli.config_files import key_paths, load_config
    from pdmd.cli.help_pages import left_out, shortened
    from pdmd.cli.renamed_keys import check_options

    chosen, rest = take_name(words, "a preset or TOML file", "digits")
    own = [field.name for field in dataclasses.fields(options)]
    rest, keys = take_table_keys(rest, table_paths(DistillConfig))
    check_options(rest, [*own, *key_paths()], f"pdmd {name} --help-all")
    config: Any = load_config(chosen)
    config = config if prepare is None else prepare(config)
    if ALL in rest:
        rest = ["--help"]
    elif {*HELP} & set(rest):
        options, config = shortened(options), shortened(config)
        doc = f"{inspect.cleandoc(doc or '')}\n\n{MORE.format(name, left_out())}"
    command = dataclasses.make_dataclass(
        name.capitalize(),
        [
            ("options", Annotated[type(options), tyro.conf.arg(name="")]),
            ("config", Annotated[type(config), tyro.conf.arg(name="")]),
        ],
    )
    command.__doc__ = doc
    parsed = parse(command, rest, f"pdmd {name} [PRESET_OR_TOML]", command(options, config))
    for section in ("teacher", "network"):  # by key: the command line's over the file's
        chosen, table = (getattr(c, section).arguments for c in (parsed.config, config))
        getattr(parsed.config, section).arguments = {**table, **chosen}
    for path, key, value in keys:
        *sections, name = path.split(".")
        section = functools.reduce(getattr, sections, parsed.config)
        table = getattr(section, name)
        kept = {} if key == "name" and table.get("name") != value else table
        setattr(section, name, {**kept, key: value})
    return parsed


def table_paths(cls: Any, prefix: str = "") -> list[str]:
    """Returns the paths of a configuration's tables, such as ``objective.times``."""
    found = []
    for name, hint in get_type_hints(cls, include_extras=True).items():
        path = f"{prefix}{name}"
        if dataclasses.is_dataclass(hint):
            found += table_paths(hint, f"{path}.")
        elif hint == Table:
            found.append(path)
    return found


def take_table_keys(
    words: Sequence[str], paths: Collection[str]
) -> tuple[list[str], list[tuple[str, str, Any]]]:
    """Splits off options for single keys of tables, such as ``--objective.times.shift 7``.

    They are merged with the table of the file, or with the command line's own. Another ``name``
    is another object, and leaves out the arguments of the one before.

    Args:
        words: The words.
        paths: The paths of the tables.

    Returns:
        The other words; and path, key and value of each.

    Raises:
        UsageError: If a key has no value, or one that is not TOML's.
    """
    rest: list[str] = []
    keys: list[tuple[str, str, Any]] = []
    i = 0
    while i < len(words):
        word = words[i]
        i += 1
        option, equals, text = word.removeprefix("--").partition("=")
        path, dot, key = option.replace("-", "_").rpartition(".")
        if not (word.startswith("--") and dot and path in paths):
            rest.append(word)
            continue
        if not equals:
            if i == len(words):
                raise UsageError(f"missing the value of {word}")
            text = words[i]
            i += 1
        try:
            keys.append((path, key, read_value(text)))
        except ValueError as error:
            raise UsageError(f"--{option}: {error}") from error
    names = [entry for entry in keys if entry[1] == "name"]
    return rest, [*names, *(entry for entry in keys if entry[1] != "name")]
