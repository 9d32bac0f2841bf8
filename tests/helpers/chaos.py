"""Chaos: runs of random settings that are killed, stopped and starved of disk at random times."""

import multiprocessing
import os
import random
import resource
import shutil
import signal
import time

import matplotlib.pyplot  # noqa: F401 - here, so that forks do not import for seconds
import torch
import torch.distributed.checkpoint.state_dict_saver
import torch.utils.tensorboard.summary

import pdmd.cli.distill
import pdmd.cli.runs
import pdmd.evaluation.report
import pdmd.training.checkpoints.storage  # noqa: F401
from pdmd.cli.main import main
from tests.helpers.tiny_runs import bits

BASE = [
    "--train.batch-size=8",
    "--evaluate.samples=100",
    "--evaluate.teacher-steps=3",
    "--network.updates=2",
    "--network.arguments.width=128",
    "--no-progress",
    "--teacher.arguments",
    *("dim", "2", "classes", "2", "modes", "2"),
]
OBJECTIVES = [
    [],
    ["--objective.weight=exact_kl"],
    ["--objective.times=log_snr", "--objective.timestep-samples=2"],
]
FAKES = [
    ["--train.fake-updates=1"],
    ["--train.fake-updates=4", "--train.fake-error-tolerance=0.35"],
    ["--train.fake-updates=2", "--train.fake-updates-per-rollout=2"],
    ["--train.fake-updates=2", "--train.fake-scores=per_exit_step"],
]
BUFFERS = [
    [],
    ["--train.phase-inputs=buffer", "--train.buffer-uses=2", "--train.buffer-batches=7"],
    ["--train.phase-inputs=buffer", "--train.buffer-uses=3", "--train.buffer-chunk=3"],
]
EXPERTS = [[], ["--train.expert=renoising"], ["--train.initializer=per_step"], ["--train.ema=0"]]
CURRICULA = [[], [], ["--train.curriculum=joint"], ["--train.curriculum=shared"]]
MODES = [[], ["--train.checkpoint-async"], ["--train.checkpoint-keep=1"]]


def random_settings(rng):
    """Returns the options of a random run."""
    words = [f"--plan.phases={rng.randint(1, 3)}", "--plan.steps", str(rng.randint(2, 3))]
    words += [f"--train.updates={rng.randint(25, 45)}", f"--train.seed={rng.randint(0, 99)}"]
    words += [f"--train.checkpoint-every={rng.randint(1, 5)}"]
    words += [f"--train.accumulate={rng.choice([1, 1, 2])}"]
    for choices in (OBJECTIVES, FAKES, BUFFERS, EXPERTS, CURRICULA, MODES):
        words += rng.choice(choices)
    return words


class Victim:
    """A run in a process of its own.

    Args:
        folder: The run folder.
        words: Its options.
        log: The file that gets what it says.
    """

    def __init__(self, folder, words, log):
        self.folder, self.words, self.log = folder, words, log
        self.counts = dict.fromkeys(("kill", "kill in a save", "stop", "full disk"), 0)

    def start(self):
        """Starts the run, or resumes it if it has a checkpoint."""
        how = ["--resume"] if self.whole() else ["--overwrite"] if self.folder.exists() else []
        if how == ["--overwrite"] and not (self.folder / "plan.json").exists():
            shutil.rmtree(self.folder)
        context = multiprocessing.get_context("fork")
        process = context.Process(target=self._run, args=(how,))
        process.start()
        return process

    def _run(self, how):
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        torch.set_num_threads(1)
        os._exit(main(["distill", "mixture", "--out", str(self.folder), *self.words, *how, *BASE]))

    def whole(self):
        """Returns the names of the whole checkpoints."""
        return {path.parent.name for path in self.folder.glob("checkpoint/*/manifest.json")}

    def saving(self):
        """Returns whether a save is in progress: a folder with tensors and no manifest."""
        folders = self.folder.glob("checkpoint/phase-*")
        return any(path.is_dir() and not (path / "manifest.json").exists() for path in folders)

    def disturb(self, rng):
        """Starts the run and disturbs it once it has got further; returns its exit code."""
        seen, process = self.whole(), self.start()
        while process.is_alive() and not self.whole() - seen:
            time.sleep(0.001)
        what = rng.choice(["kill", "kill", "kill", "kill in a save", "stop", "full disk"])
        self._wait(process, rng.random() * 0.4)
        if what == "full disk":
            self._fill_disk(process, rng)
        if what == "kill in a save":
            deadline = time.monotonic() + 3
            while process.is_alive() and not self.saving() and time.monotonic() < deadline:
                time.sleep(0)
        if process.is_alive():
            self.counts[what] += 1
            os.kill(process.pid, signal.SIGTERM if what == "stop" else signal.SIGKILL)
        process.join()
        return process.exitcode

    @staticmethod
    def _wait(process, seconds):
        deadline = time.monotonic() + seconds
        while process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.001)

    def _fill_disk(self, process, rng):
        """Lets no file grow beyond a few bytes for a while."""
        try:
            _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
            small = rng.choice([0, 100, 5000])
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (small, hard))
            self._wait(process, rng.random() * 0.6)
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        except ProcessLookupError:  # it has ended
            return
        self._wait(process, rng.random() * 0.3)


def endure(folder, seed, kills, deadline):
    """Compares a disturbed run with one that is not.

    Args:
        folder: An empty folder.
        seed: Seed of the settings and of the disturbances.
        kills: Disturbances, at most.
        deadline: Time, by ``time.monotonic``, after which the run is left to end.

    Returns:
        The number of disturbances, by kind.
    """
    rng = random.Random(seed)
    words, log = random_settings(rng), folder / "log.txt"
    whole, run = Victim(folder / "whole", words, log), Victim(folder / "run", words, log)
    said = f"seed {seed}: {' '.join(words)}"
    process = whole.start()
    process.join()
    assert process.exitcode == 0, f"{said}\n{log.read_text()[-2000:]}"
    code = None
    while code != 0 and sum(run.counts.values()) < kills and time.monotonic() < deadline:
        code = run.disturb(rng)
        assert code in (0, 130, -signal.SIGKILL, 2), f"{said}: {code}\n{log.read_text()[-2000:]}"
    if code != 0:
        process = run.start()
        process.join()
        assert process.exitcode == 0, f"{said}\n{log.read_text()[-2000:]}"
    assert "Traceback" not in log.read_text(), f"{said}\n{log.read_text()[-3000:]}"
    assert torch.equal(bits(run.folder), bits(whole.folder)), said
    return run.counts
