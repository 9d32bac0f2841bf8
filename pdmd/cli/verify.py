"""The command `pdmd verify`."""

from __future__ import annotations

import sys

from pdmd.cli.arguments import no_more, take_name

__all__ = ["verify_command"]


def verify_command(words: list[str]) -> int:
    """Checks a folder against the digests that were written with it.

    Args:
        words: The words after the command's name.

    Returns:
        The exit code: 1 if a file is wrong.
    """
    from pdmd.verification.folders import verify

    name, rest = take_name(words, "a folder: a run, student, store, export or checkpoint")
    no_more([word for word in rest if word not in ("-h", "--help")])
    if not name:
        print(
            "usage: pdmd verify FOLDER\n\nChecks a run, a student, checkpoints, a store of "
            "embeddings or an export against the\ndigests that were written with it, without "
            "running anything in it. Prints a line for\nevery file that is wrong, and exits with "
            "1 if there is one."
        )
        return 0
    found = verify(name)
    for fault in found.faults:
        print(fault)
    if found.faults:
        wrong = f"{len(found.faults)} of {found.checked} files are wrong"
        print(f"pdmd: {name} ({found.kind}): {wrong}", file=sys.stderr)
        return 1
    print(f"{name} ({found.kind}): {found.checked} files are as they were written")
    return 0
