"""Ranks that die, hang, fail or are stopped: the others exit, and report the cause."""

import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist

from pdmd import Student
from pdmd.cli.main import main
from pdmd.training.monitoring.recorder import RunRecorder
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.distributed

WORDS = [
    "distill",
    "mixture",
    "--train.updates=6",
    "--train.fake-updates=1",
    "--train.batch-size=8",
    "--train.checkpoint-every=2",
    "--evaluate.samples=100",
    "--evaluate.teacher-steps=3",
    "--network.updates=5",
    "--plan.phases=2",
    "--parallel.heartbeat_timeout=5",
    "--teacher.plugins=tests.distributed.sabotage",
    "--no-progress",
    "--teacher.arguments",
    *("dim", "2", "classes", "2", "modes", "2"),
]
LONG = "--train.updates=100000"


class Ranks:
    """Two ranks of a run, without a launcher."""

    def __init__(self, folder, *words, **environment):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = {
            **os.environ,
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        command = [sys.executable, "-m", "pdmd", *WORDS, "--out", str(folder), *words]
        self.processes = [
            subprocess.Popen(
                command,
                env={**environment, "RANK": rank, "LOCAL_RANK": rank},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in "01"
        ]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for process in self.processes:
            process.kill()
            process.communicate()

    def wait_for_checkpoint(self, *known):
        """Waits for a checkpoint other than the known ones."""
        deadline = time.monotonic() + 180
        while not {*whole_checkpoints(self.folder)} - {*known}:
            assert all(process.poll() is None for process in self.processes), self.end()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def signal(self, number, *ranks):
        for rank in ranks:
            self.processes[rank].send_signal(number)

    def end(self, *ranks, within=180.0):
        """Waits for ranks, and returns the exit code and pdmd's lines on stderr of each."""
        outcomes, deadline = [], time.monotonic() + within
        for rank in ranks or (0, 1):
            process = self.processes[rank]
            _, said = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
            ours = [line for line in said.splitlines() if line.startswith("pdmd:")]
            ours = [line for line in ours if "Euler steps" not in line]  # so few updates
            outcomes.append((process.returncode, ours))
            assert "Traceback" not in said or "TypeError" in said
        return outcomes


def whole_checkpoints(folder):
    return sorted(path.parent.name for path in folder.glob("checkpoint/*/manifest.json"))


def bits(folder):
    return Student.load(folder / "student").state_dict()


# ------------------------------------------------------------------------------ dead and hanging


@pytest.mark.parametrize("dead", [0, 1])
def test_a_killed_rank_is_reported_and_the_other_exits(tmp_path, dead):
    with Ranks(tmp_path / "run", LONG) as ranks:
        ranks.wait_for_checkpoint()
        ranks.signal(signal.SIGKILL, dead)
        ((code, said),) = ranks.end(1 - dead, within=60)
    assert code == 1 and len(said) == 1, said
    assert said[0].startswith("pdmd: error: ") and f"rank {dead} " in said[0]
    assert whole_checkpoints(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("hanging", [0, 1])
def test_a_hanging_rank_is_reported_and_the_other_exits(tmp_path, hanging):
    with Ranks(tmp_path / "run", LONG) as ranks:
        ranks.wait_for_checkpoint()
        ranks.signal(signal.SIGSTOP, hanging)
        ((code, said),) = ranks.end(1 - hanging, within=60)
    assert code == 1 and len(said) == 1, said
    assert f"rank {hanging}" in said[0] and "for 5 s: died, killed or hanging" in said[0]


@pytest.mark.slow
def test_ranks_suspended_and_continued_together_finish(tmp_path):
    with Ranks(tmp_path / "run", "--train.updates=150") as ranks:
        ranks.wait_for_checkpoint()
        ranks.signal(signal.SIGSTOP, 0, 1)
        time.sleep(12)
        ranks.signal(signal.SIGCONT, 0, 1)
        assert ranks.end(within=120) == [(0, []), (0, [])]


# --------------------------------------------------------------------------------------- stopped


def test_a_run_stopped_on_one_or_all_ranks_resumes_to_the_same_bits(tmp_path):
    folder, words = tmp_path / "run", ["--train.updates=30", "--train.checkpoint-every=5"]
    for stopped, more in (((1,), []), ((0, 1), ["--resume"])):
        before = whole_checkpoints(folder)
        with Ranks(folder, *words, *more) as ranks:
            ranks.wait_for_checkpoint(*before)
            ranks.signal(signal.SIGTERM, *stopped)
            (code, said), (other, silent) = ranks.end()
        assert code == other == 130
        found = re.fullmatch(
            r"pdmd: stopped in phase (\d) after update (\d+); resume with: (.*)", said[-1]
        )
        assert found is not None, said
        phase, update, again = found.groups()
        assert again == f"pdmd distill {folder / 'config.toml'} --resume"
        saved = f"phase-{int(phase):04d}-update-{int(update):09d}"
        assert whole_checkpoints(folder)[-1] == saved and saved not in before
        asked = "pdmd: stopping after this update (repeat to stop immediately)"
        assert said[:-1] == [asked] * stopped.count(0) and silent == [asked] * stopped.count(1)
    with Ranks(folder, *words, "--resume") as ranks, Ranks(tmp_path / "whole", *words) as whole:
        assert ranks.end() == whole.end() == [(0, []), (0, [])]
    got, wanted = bits(folder), bits(tmp_path / "whole")
    assert got.keys() == wanted.keys() and len(got) > 4
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


@pytest.mark.slow
def test_only_the_main_rank_evaluates_and_it_can_be_stopped_and_resumed(tmp_path):
    folder, waits = tmp_path / "run", tmp_path / "waits"
    with Ranks(folder, PDMD_SABOTAGE="evaluation", PDMD_WAITS=str(waits)) as ranks:
        assert ranks.end(1) == [(0, [])]
        while not waits.exists():
            time.sleep(0.01)
        assert ranks.processes[0].poll() is None and not (folder / "metrics.json").exists()
        ranks.signal(signal.SIGTERM, 0)
        ((code, said),) = ranks.end(0)
    assert code == 130
    assert said == [f"pdmd: stopped; resume with: pdmd distill {folder}/config.toml --resume"]
    before = bits(folder)
    assert main(["distill", f"{folder}/config.toml", "--resume", "--no-progress"]) == 0
    after = bits(folder)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert (folder / "metrics.json").exists() and len(whole_checkpoints(folder)) == 1


# --------------------------------------------------------------------------------------- failing


def test_an_error_on_the_main_rank_ends_the_other_with_the_cause(tmp_path):
    with Ranks(tmp_path / "run", LONG, PDMD_SABOTAGE="recorder") as ranks:
        (main_code, said), (code, heard) = ranks.end(within=40)
    why = "[Errno 28] No space left on device"
    assert main_code != 0 and said == [f"pdmd: error: {why}"]
    assert code == 1 and len(heard) == 1 and f"rank 0 stopped: {why}" in heard[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "why"),
    [
        ("OSError", "[Errno 5] Input/output error"),
        ("RuntimeError", "fell off the bus"),
        ("TypeError", "unsupported operand"),
    ],
)
def test_an_error_on_another_rank_ends_the_main_one_with_the_cause(tmp_path, error, why):
    with Ranks(tmp_path / "run", LONG, PDMD_SABOTAGE="rank 1", PDMD_ERROR=error) as ranks:
        (main_code, said), (code, _) = ranks.end(within=40)
    assert main_code == 1 and code != 0
    assert len(said) == 1 and "rank 1 stopped: " in said[0] and why in said[0]


# ------------------------------------------------------------------------------------- bad input


def tree(folder):
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def rejections(cases, folder):
    """Calls the command line with bad input; returns exit codes, lines, and what was written."""
    rank = str(dist.get_rank())
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=str(dist.get_world_size()))
    outcomes = []
    for words in cases:
        dist.barrier()
        before, out = tree(folder), io.StringIO()
        dist.barrier()
        with contextlib.redirect_stderr(out), contextlib.redirect_stdout(out):
            code = main([*WORDS, *words])
        dist.barrier()
        outcomes.append((code, out.getvalue(), tree(folder) == before))
    return outcomes


@pytest.fixture
def unfinished(tmp_path, monkeypatch, capsys):
    def on_update(recorder, update):
        if update == 3:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(RunRecorder, "on_update", on_update)
        assert main([*WORDS, "--out", str(tmp_path / "unfinished")]) == 130
    capsys.readouterr()
    return tmp_path / "unfinished"


def test_bad_input_ends_all_ranks_in_one_line_and_writes_nothing(tmp_path, unfinished):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("mine")
    (tmp_path / "file").write_text("mine")
    new, there = ["--out", str(tmp_path / "new")], ["--out", str(unfinished)]
    cases = [
        ("2 ranks are not divisible by dp_shard", [*new, "--parallel.dp-shard", "3"]),
        ("2 ranks are not divisible by", [*new, "--parallel.tp", "3"]),
        ("is not divisible by 2 data ranks", [*new, "--train.batch-size", "7"]),
        ("states no parallel plan", [*new, "--parallel.tp", "2"]),
        ("states no parallel plan", [*new, "--parallel.cp", "2"]),
        ("is not empty", ["--out", str(tmp_path / "taken")]),
        ("is a file", ["--out", str(tmp_path / "file")]),
        (
            "is on an unknown file system",
            [*new, "--train.checkpoint-folder", "nosuch://a/b"],
        ),
        ("file/x", [*new, "--train.checkpoint-folder", str(tmp_path / "file" / "x")]),
        ("holds an unfinished run", there),
        ("has no checkpoint to resume", [*new, "--resume"]),
        ("there is no checkpoint 'phase-9'", [*there, "--checkpoint", "phase-9"]),
        ("was written with train.ema = 0.9", [*there, "--resume", "--train.ema", "0.5"]),
        (
            "was written with network.arguments.width = 64, this run has 32",
            [*there, "--resume", "--network.arguments.width=32"],
        ),
    ]
    outcomes = run_ranks(rejections, 2, [words for _, words in cases], tmp_path)
    for i, (named, _) in enumerate(cases):
        for rank, (code, said, untouched) in enumerate(outcome[i] for outcome in outcomes):
            assert code == 2 and untouched, (named, said)
            assert rank == 0 or said == "", named
        said = outcomes[0][i][1]
        assert said.startswith("pdmd: error: ") and said.count("\n") == 1, said
        assert named in said


def test_ranks_sample_an_evaluation_together(tmp_path):
    with Ranks(tmp_path / "run") as ranks:
        assert ranks.end() == [(0, []), (0, [])]
    assert (tmp_path / "run" / "metrics.json").exists()
