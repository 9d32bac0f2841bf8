"""Run folders belong to one process at a time."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from pdmd.locks import LOCKS, Lock
from tests.helpers.tiny_runs import distill

HOLD = """
import sys, time
from pathlib import Path
from pdmd.locks import Lock
with Lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of a folder."""
    folder = tmp_path / "run"
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield folder, process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("words", [[], ["--resume"], ["--overwrite"]])
def test_the_second_process_says_who_holds_the_folder(holder, capsys, words):
    folder, process = holder
    assert distill(folder, *words) == 2
    error = capsys.readouterr().err
    assert f"{folder} is in use by process {process.pid} on {os.uname().nodename}, since" in error
    assert error.count("\n") == 1 and process.poll() is None
    assert sorted(path.name for path in folder.iterdir()) == sorted(LOCKS)


def test_the_lock_of_a_killed_process_does_not_block(holder):
    folder, process = holder
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert json.loads((folder / LOCKS[1]).read_text())["pid"] == process.pid
    Lock(folder).check()
    with Lock(folder):
        assert json.loads((folder / LOCKS[1]).read_text())["pid"] == os.getpid()
    assert [path.name for path in folder.iterdir()] == [LOCKS[0]]


def test_a_lock_is_entered_again_by_its_owner_only(tmp_path):
    lock, other = Lock(tmp_path), Lock(tmp_path)
    with lock, lock:
        for enter in (other.check, other.__enter__):
            with pytest.raises(ValueError, match=f"process {os.getpid()} "):
                enter()
    with other, pytest.raises(ValueError, match="is in use"):
        lock.check()


def test_two_runs_do_not_share_a_folder_of_checkpoints(holder, tmp_path, capsys):
    folder, _ = holder
    assert distill(tmp_path / "other", "--train.checkpoint-folder", str(folder)) == 2
    assert "is in use by" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_overwriting_does_not_end_a_live_run(tmp_path):
    folder = tmp_path / "run"
    code = f"from tests.helpers.tiny_runs import distill; distill({str(folder)!r}, '{{}}')"
    live = subprocess.Popen([sys.executable, "-c", code.format("--train.updates=100000")])
    try:
        deadline = time.monotonic() + 120
        while not list(folder.glob("checkpoint/*/manifest.json")):
            assert live.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        assert distill(folder, "--overwrite") == 2
        time.sleep(0.5)
        assert live.poll() is None and list(folder.glob("checkpoint/*/manifest.json"))
    finally:
        live.kill()
        live.wait()
    assert distill(folder, "--overwrite") == 0
