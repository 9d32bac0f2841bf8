"""A run under torchrun goes on by itself after one of its ranks, or nodes, has died."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pdmd.cli.main import main
from tests.helpers.tiny_runs import TINY, bits

pytestmark = pytest.mark.distributed


def ranks_of(launcher):
    """Returns the process ids of the ranks, by rank."""
    found = {}
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(launcher.pid)], capture_output=True, text=True
    )
    for pid in children.stdout.split():
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
        values = dict(item.partition(b"=")[::2] for item in environment.split(b"\0"))
        if b"RANK" in values:
            found[int(values[b"RANK"])] = int(pid)
    return found


def restarted(tmp_path, ranks, dead):
    folder = tmp_path / "run"
    words = [word for word in TINY if not word.startswith("--train.updates")]
    launcher = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", "2"]
        + ["--nproc-per-node", str(ranks), "-m", "pdmd", "distill", "mixture"]
        + ["--out", str(folder), "--train.updates=40", "--parallel.heartbeat_timeout=60", *words],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        },
        stderr=(tmp_path / "said.txt").open("w"),
    )
    deadline = time.monotonic() + 400
    while not list(folder.glob("checkpoint/*/manifest.json")):
        assert launcher.poll() is None, (tmp_path / "said.txt").read_text()[-5000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(ranks_of(launcher)[dead], signal.SIGKILL)
    launcher.wait(timeout=500)
    assert launcher.returncode == 0, (tmp_path / "said.txt").read_text()[-5000:]
    whole = tmp_path / "whole"
    assert main(["distill", "mixture", "--out", str(whole), "--train.updates=40", *words]) == 0
    assert torch.allclose(bits(folder), bits(whole), atol=1e-4)  # other ranks round otherwise


def launch_node(folder, said, port, *, host):
    """Starts two ranks as one of one or two nodes, all of them on this machine."""
    words = [word for word in TINY if not word.startswith("--train.updates")]
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc-per-node", "2"]
        + ["--max-restarts", "3", "--rdzv-backend", "c10d", "--rdzv-id", "elastic"]
        + ["--rdzv-endpoint", f"localhost:{port}"]
        + ["--rdzv-conf", f"last_call_timeout=5,is_host={int(host)}"]
        + ["-m", "pdmd", "distill", "mixture", "--out", str(folder)]
        + ["--train.updates=60", "--parallel.heartbeat_timeout=30", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        stderr=said.open("w"),
        stdout=subprocess.DEVNULL,
    )


@pytest.mark.slow
def test_a_run_of_two_nodes_goes_on_with_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder, said = tmp_path / "run", [tmp_path / "first.txt", tmp_path / "second.txt"]
    first = launch_node(folder, said[0], port, host=True)  # has the store of the rendezvous
    second = launch_node(folder, said[1], port, host=False)
    try:
        deadline, world = time.monotonic() + 400, {}
        while not list(folder.glob("checkpoint/*/manifest.json")) or len(world) < 4:
            assert first.poll() is None and second.poll() is None, said[0].read_text()[-5000:]
            assert time.monotonic() < deadline
            world = {**ranks_of(first), **ranks_of(second)}
            time.sleep(0.05)
        for pid in (second.pid, *ranks_of(second).values()):
            os.kill(pid, signal.SIGKILL)
        first.wait(timeout=500)
        assert first.returncode == 0, said[0].read_text()[-5000:]
    finally:
        for launcher in (first, second):
            launcher.kill()
            launcher.wait()
    words = [word for word in TINY if not word.startswith("--train.updates")]
    whole = tmp_path / "whole"
    assert main(["distill", "mixture", "--out", str(whole), "--train.updates=60", *words]) == 0
    assert torch.allclose(bits(folder), bits(whole), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("dead", [0, 3])
def test_four_ranks_go_on_after_one_was_killed(tmp_path, dead):
    restarted(tmp_path, 4, dead)
