"""A plugin that makes one rank of a run fail, selected by ``PDMD_SABOTAGE``."""

import os
import time
from pathlib import Path

from pdmd.cli import runs
from pdmd.training.monitoring.recorder import RunRecorder
from pdmd.training.trainer import PhaseTrainer


def full_disk(self, update):
    if update == 3:
        raise OSError(28, "No space left on device")


def fail(self):
    raise FAILURES[os.environ["PDMD_ERROR"]]


def wait(*args, **kwargs):
    Path(os.environ["PDMD_WAITS"]).touch()
    time.sleep(600)


FAILURES = {
    "OSError": OSError(5, "Input/output error"),
    "RuntimeError": RuntimeError("the accelerator fell off the bus"),
    "TypeError": TypeError("unsupported operand"),
}
what = os.environ.get("PDMD_SABOTAGE")
if what == "recorder":  # only the main rank has one
    RunRecorder.on_update = full_disk
elif what == "rank 1" and os.environ["RANK"] == "1":
    PhaseTrainer.cycle = fail
elif what == "evaluation":
    runs.score = wait
