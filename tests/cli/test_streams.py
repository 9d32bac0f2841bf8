"""Closed, full and unread standard streams: no traceback, and no training lost."""

import io
import os
import subprocess
import sys

import pytest

from pdmd.cli.streams import LenientStream, standard_streams
from tests.helpers.tiny_runs import TINY


class Full(io.StringIO):
    def write(self, *text):
        raise OSError(28, "No space left on device")

    flush = write


def test_the_error_stream_drops_what_cannot_be_written(monkeypatch):
    before = Full()
    monkeypatch.setattr(sys, "stderr", before)
    with standard_streams():
        print("lost", file=sys.stderr, flush=True)
        assert sys.stderr.isatty() is False
    assert sys.stderr is before
    kept = io.StringIO()
    print("kept", file=LenientStream(kept))
    assert kept.getvalue() == "kept\n"


def test_missing_streams_lead_to_nowhere(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stdin", None)
    with standard_streams():
        print("lost", flush=True)
        assert sys.stdin is not None


def test_characters_that_the_output_cannot_encode_are_escaped(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    with standard_streams():
        print("läufe/a → b")
    assert written.getvalue() == rb"l\xe4ufe/a \u2192 b" + b"\n"


@pytest.fixture(params=["", "1"], ids=["buffered", "unbuffered"])
def environment(request):
    """Python writes its output at once, or what has gathered at its end."""
    return {**os.environ, "PYTHONUNBUFFERED": request.param}


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("teachers >/dev/full", 2),
        ("--help >/dev/full", 2),
        ("plan --help >/dev/full", 2),
        ("--version >&- 2>&-", 0),
    ],
)
def test_commands_exit_with_their_own_code(command, code, environment):
    words = f'"{sys.executable}" -m pdmd {command}'
    done = subprocess.run(["sh", "-c", words], capture_output=True, text=True, env=environment)
    assert done.returncode == code and "Traceback" not in done.stderr
    assert ("No space left on device" in done.stderr) == (code == 2)


def test_a_run_without_a_terminal_ends_well(tmp_path, environment):
    words = " ".join([*TINY, "--train.updates=2"]).replace("--no-progress", "")
    command = f'"{sys.executable}" -m pdmd distill mixture --out "{tmp_path}/run" {words}'
    done = subprocess.run(
        ["sh", "-c", f"{command} --progress >/dev/full 2>&-"], env=environment, check=False
    )
    assert done.returncode == 0
    assert (tmp_path / "run" / "report.html").exists()
