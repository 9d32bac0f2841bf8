"""Standard streams that are closed, full, or read by nobody.

Progress and warnings are written to the standard error stream by many libraries, and an error
there would end a training. So a command runs with a stream that drops what cannot be written. On
the standard output stream, which has results, errors are errors.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

__all__ = ["standard_streams", "write_line"]


class LenientStream:
    """A text stream that drops what cannot be written.

    Args:
        stream: Where the text goes.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Writes a text, if it can be written."""
        with contextlib.suppress(OSError, ValueError):
            return self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes the stream, if it can be written to."""
        with contextlib.suppress(OSError, ValueError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Replaces closed streams by ``/dev/null``, and the error stream by a lenient one.

    Characters that the output's encoding lacks are written as escapes. At the end, streams that
    cannot be flushed are led to ``/dev/null``, so that Python exits with the code of the command.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file to be opened would take its number
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    before = sys.stderr
    sys.stderr = cast(TextIO, LenientStream(before))
    try:
        yield
    finally:
        sys.stderr = before
        for stream in (sys.stdout, sys.stderr):
            _flush(stream)


def write_line(text: str, stream: TextIO) -> None:
    """Writes a line at once, or drops it with all that follows if it cannot be written.

    What stayed in the buffer of a stream would be an error of whatever flushes it next.
    """
    try:
        print(text, file=stream, flush=True)
    except (OSError, ValueError):
        _lead_nowhere(stream)


def _flush(stream: TextIO) -> None:
    try:
        stream.flush()
    except (OSError, ValueError):
        _lead_nowhere(stream)


def _lead_nowhere(stream: TextIO) -> None:
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
