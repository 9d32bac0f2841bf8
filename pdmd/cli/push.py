"""The command `pdmd push`."""

from __future__ import annotations

from dataclasses import dataclass

from pdmd.cli.arguments import HELP, parse, take_name
from pdmd.files import is_hub_name

__all__ = ["push_command"]


@dataclass(kw_only=True)
class PushOptions:
    """Uploads a student with its card, plan, report and samples, or an export, to the model hub.

    The settings and the report name local folders: look at --dry-run first.
    """

    dry_run: bool = False
    """Only list the files and their sizes; needs no network."""
    private: bool = False
    """Create a private repository, if there is none yet."""


def push_command(words: list[str]) -> int:
    """Uploads a student or an export.

    Args:
        words: The words after the command's name.

    Returns:
        The exit code.
    """
    name, rest = take_name(words, "the run, student or export, for example runs/digits")
    if {*HELP} & set(rest):
        rest = ["--help"]
        repository = ""
    else:
        repository, rest = take_name(rest, "the name on the hub: pdmd push STUDENT user/name")
    options = parse(PushOptions, rest, "pdmd push STUDENT USER/NAME", flat=True)
    from pdmd.export.hub import files_to_push, left_out, push

    if not is_hub_name(repository):
        raise ValueError(f"a name on the hub is user/name, got {repository!r}")
    files = files_to_push(name, repository)
    width = max(len(file.path) for file in files)
    for file in files:
        print(f"{file.path.ljust(width)}  {_readable(file.size):>9}")
    if others := left_out(name, files):
        more = f" and {len(others) - 4} more" if others[4:] else ""
        print(f"left out, as no export wrote them: {', '.join(others[:4])}{more}")
    total = _readable(sum(file.size for file in files))
    if options.dry_run:
        print(f"{len(files)} files of {total} would be uploaded to {repository}")
        return 0
    print(f"uploading {len(files)} files of {total}")
    print(f"student  {push(files, repository, private=options.private)}")
    return 0


def _readable(size: int) -> str:
    for unit, bytes_each in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= bytes_each:
            return f"{size / bytes_each:.1f} {unit}"
    return f"{size} B"
