"""The launch scripts, with stand-ins for the commands they call."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pdmd.training.checkpoints.store import Store

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "examples" / "launch"

UNTIL_TERM = """\
trap 'echo TERM >> heard' TERM
echo "$@" > words
until [[ -s heard ]]; do sleep 0.02; done
sleep 0.3
exit 1
"""
ENDS = 'echo "$@" > words; exit "${CODE:-0}"\n'


def receive_sigint():
    """Handles SIGINT even if the tests run in the background, where it is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def start(tmp_path):
    def start(script, *words, commands, **environment):
        tools = tmp_path / "bin"
        tools.mkdir(exist_ok=True)
        for name, text in {**commands, "python": f'exec {sys.executable} "$@"'}.items():
            (tools / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
            (tools / name).chmod(0o755)
        path = f"{tools}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), **environment}
        return subprocess.Popen(
            ["bash", LAUNCH / script, *words],
            cwd=tmp_path,
            env=environment,
            preexec_fn=receive_sigint,
        )

    return start


def wait_for(path):
    deadline = time.monotonic() + 60
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return path.read_text().split()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_torchrun_receives_one_signal_to_stop(start, tmp_path, number):
    process = start("torchrun.sh", "digits", commands={"torchrun": UNTIL_TERM}, NPROC_PER_NODE="2")
    words = wait_for(tmp_path / "words")
    assert "--standalone" in words and words[-4:] == ["-m", "pdmd", "distill", "digits"]
    for _ in range(3):
        process.send_signal(number)
        time.sleep(0.05)
    assert process.wait(60) == 130
    assert (tmp_path / "heard").read_text().split() == ["TERM"]


@pytest.mark.parametrize("code", [0, 1])
def test_the_exit_code_of_torchrun_is_returned(start, code):
    process = start("torchrun.sh", "digits", commands={"torchrun": ENDS}, CODE=str(code))
    assert process.wait(60) == code


def test_several_nodes_require_a_rendezvous_endpoint(start, tmp_path):
    assert start("torchrun.sh", "digits", commands={"torchrun": ENDS}, NNODES="2").wait(60) != 0
    assert not (tmp_path / "words").exists()
    settings = {"NNODES": "2", "RDZV_ENDPOINT": "node0:29500"}
    assert start("torchrun.sh", "digits", commands={"torchrun": ENDS}, **settings).wait(60) == 0
    words = wait_for(tmp_path / "words")
    assert words[words.index("--rdzv-endpoint") + 1] == "node0:29500"


JOB = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_NODELIST": "node[0-1]",
    "SLURM_SUBMIT_DIR": str(ROOT),
}
SLURM = {
    "srun": ENDS,
    "scontrol": 'if [[ $1 == show ]]; then echo node0; else echo "$@" > queued; fi',
    "scancel": 'echo "$@" > cancelled; kill -TERM "$(cat step)"',
}


@pytest.mark.parametrize(
    ("checkpoint", "restarts", "wanted"),
    [(False, "0", set()), (True, "0", {"--resume"}), (False, "1", {"--overwrite"})],
)
def test_a_job_resumes_if_there_is_a_checkpoint(start, tmp_path, checkpoint, restarts, wanted):
    if checkpoint:
        store = Store(tmp_path / "out" / "checkpoint")
        store.save("phase-0001-update-000000001", {"a": torch.zeros(1)}, {})
    process = start(
        "slurm.sbatch", "digits", "out", commands=SLURM, SLURM_RESTART_COUNT=restarts, **JOB
    )
    assert process.wait(60) == 0
    words = (tmp_path / "words").read_text().split()
    assert {"--resume", "--overwrite"} & set(words) == wanted
    assert not (tmp_path / "queued").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_job_that_is_stopped_is_requeued(start, tmp_path, number):
    commands = {**SLURM, "srun": "echo $$ > step\n" + UNTIL_TERM}
    process = start("slurm.sbatch", "digits", "out", commands=commands, **JOB)
    wait_for(tmp_path / "words")
    process.send_signal(number)
    assert process.wait(60) != 0
    assert wait_for(tmp_path / "cancelled") == ["--signal=TERM", "7.0"]
    assert wait_for(tmp_path / "queued") == ["requeue", "7"]
