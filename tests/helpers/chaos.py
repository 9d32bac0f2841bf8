"""Chaos: runs of random settings that are killed, stopped and starved of disk at random times.

Every run is a fork of this process, which has imported what the first of them did: one costs what
it does, and no seconds of imports.
"""

import gc
import importlib
import multiprocessing
import os
import random
import resource
import signal
import socket
import sys
import time
from contextlib import suppress

import torch

from pdmd.cli.main import main
from tests.helpers.chaos_settings import random_settings
from tests.helpers.tiny_runs import bits

__all__ = ["endure"]

DISTURBANCES = ("kill", "kill", "kill", "kill in a save", "early kill", "stop", "full disk")


class Victim:
    """A run in processes of its own, one for each rank.

    Args:
        folder: The run folder.
        words: Its options.
        log: The file that gets what it says.
        ranks: Number of ranks.
        evaluates: Whether the run is evaluated at its end, which takes longer than the training.
    """

    def __init__(self, folder, words, log, *, ranks=1, evaluates=False):
        self.folder, self.words, self.log = folder, words, log
        self.ranks, self.evaluates = ranks, evaluates
        kinds = [*dict.fromkeys(DISTURBANCES), *(["kill of one rank"] if ranks > 1 else [])]
        self.counts = dict.fromkeys(kinds, 0)

    def start(self):
        """Starts the run, or resumes it if it has a checkpoint; returns its processes."""
        how = "--resume" if self.whole() else "--overwrite" if self.folder.exists() else ""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = multiprocessing.get_context("fork")
        processes = [
            context.Process(target=self._run, args=(how, rank, port)) for rank in range(self.ranks)
        ]
        for process in processes:
            process.start()
        return processes

    def _run(self, how, rank, port):
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        torch.set_num_threads(1)
        if self.ranks > 1:
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(self.ranks))
        if not self.evaluates:
            from pdmd.cli.runs import Run

            Run._evaluate = lambda run, student: run.leave() or [{"method": "student"}]
        words = ["distill", "mixture", "--out", str(self.folder), *self.words]
        code = main([*words, *([how] if how else [])])
        if rank == 0:
            with suppress(OSError):  # the disk may be full
                self.folder.with_suffix(".modules").write_text(" ".join(sys.modules))
        os._exit(code)

    def finish(self):
        """Runs to the end without disturbance; returns the exit codes.

        This process then imports what the run has imported, for the forks that follow.
        """
        processes = self.start()
        codes = join(processes)
        imported = self.folder.with_suffix(".modules")
        names = imported.read_text().split() if imported.exists() else []
        for name in sorted(names, key=lambda name: not name.startswith("pdmd.")):
            if name not in sys.modules and name != "__mp_main__":
                with suppress(Exception):  # one that is imported in another order
                    importlib.import_module(name)
        gc.collect()
        gc.freeze()  # a collection in a fork would copy every page
        return codes

    def whole(self):
        """Returns the names of the whole checkpoints."""
        return {path.parent.name for path in self.folder.glob("checkpoint/*/manifest.json")}

    def saving(self):
        """Returns whether a save is in progress: a folder with tensors and no manifest."""
        folders = self.folder.glob("checkpoint/phase-*")
        return any(path.is_dir() and not (path / "manifest.json").exists() for path in folders)

    def disturb(self, rng):
        """Starts the run and disturbs it, mostly once it has got further.

        Returns:
            The exit codes of its ranks.
        """
        what = rng.choice(DISTURBANCES)
        if what == "kill" and self.ranks > 1 and rng.random() < 0.3:
            what = "kill of one rank"
        seen, processes = self.whole(), self.start()
        if what != "early kill":
            while alive(processes) and not self.whole() - seen:
                time.sleep(0.002)
        wait(processes, rng.random() * (0.6 if what == "early kill" else 0.3))
        if what == "full disk":
            fill_disk(processes, rng)
        if what == "kill in a save":
            deadline = time.monotonic() + 3
            while alive(processes) and not self.saving() and time.monotonic() < deadline:
                time.sleep(0)
        chosen = processes
        if what == "kill of one rank" or (what == "stop" and rng.random() < 0.5):
            chosen = [rng.choice(processes)]
        if alive(chosen):
            self.counts[what] += 1
            for process in chosen:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGTERM if what == "stop" else signal.SIGKILL)
        return join(processes)


def alive(processes):
    """Returns whether all processes are alive."""
    return all(process.is_alive() for process in processes)


def wait(processes, seconds):
    """Waits while all processes are alive."""
    deadline = time.monotonic() + seconds
    while alive(processes) and time.monotonic() < deadline:
        time.sleep(0.002)


def join(processes, timeout=900):
    """Waits for all processes to end; returns their exit codes, or ``hung``."""
    deadline = time.monotonic() + timeout
    for process in processes:
        process.join(max(0.1, deadline - time.monotonic()))
    codes = ["hung" if process.is_alive() else process.exitcode for process in processes]
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
    return codes


def fill_disk(processes, rng):
    """Lets no file grow beyond a few bytes for a while."""
    small, limits = rng.choice([0, 100, 5000]), {}
    for process in processes:
        with suppress(ProcessLookupError):
            limits[process.pid] = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
            hard = limits[process.pid][1]
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (small, hard))
    wait(processes, rng.random() * 0.6)
    for pid, (_, hard) in limits.items():
        with suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
    wait(processes, rng.random() * 0.3)


def endure(folder, seed, kills, deadline, *, ranks=1, adapters=None):
    """Compares a disturbed run with one that is not.

    Args:
        folder: An empty folder.
        seed: Seed of the settings and of the disturbances.
        kills: Disturbances, at most.
        deadline: Time, by ``time.monotonic``, after which the run is left to end.
        ranks: Number of ranks.
        adapters: Whether experts are adapters; drawn by default.

    Returns:
        The number of disturbances, by kind.
    """
    rng = random.Random(seed)
    adapters = rng.random() < 0.3 if adapters is None else adapters
    words = random_settings(rng, adapters=adapters, ranks=ranks)
    if ranks > 1:
        words.insert(0, "--parallel.heartbeat-timeout=8")
    more = {"ranks": ranks, "evaluates": rng.random() < 0.15}
    log = folder / "log.txt"
    whole = Victim(folder / "whole", words, log, **more)
    run = Victim(folder / "run", words, log, **more)

    def fail(why):
        raise AssertionError(
            f"{why}; seed {seed}, {ranks} ranks: {' '.join(words)}\n{log.read_text()[-3000:]}"
        )

    codes = whole.finish()
    if any(codes):
        fail(f"undisturbed, the run exits with {codes}")
    # after the death of another rank, one exits with 1
    allowed = {0, 130, -signal.SIGKILL, 2, *([1] if ranks > 1 else [])}
    codes = [None]
    while any(c != 0 for c in codes):
        if sum(run.counts.values()) >= kills or time.monotonic() > deadline:
            break
        codes = run.disturb(rng)
        if not set(codes) <= allowed:
            fail(f"disturbed, the run exits with {codes}")
    if any(c != 0 for c in codes):
        codes = run.finish()
        if any(codes):
            fail(f"left alone, the run exits with {codes}")
    if "Traceback" in log.read_text():
        fail("a traceback was printed")
    if not torch.equal(bits(run.folder), bits(whole.folder)):
        fail("the weights differ")
    return run.counts
