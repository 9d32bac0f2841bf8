"""Trackers: what they show, offline, and that one that fails ends no run."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from pdmd import PhasePlan
from pdmd.cli.main import main
from pdmd.extras import MissingExtra
from pdmd.training.monitoring.recorder import RunRecorder
from pdmd.training.monitoring.trackers import TrackedRun, Tracker, TrackioTracker, trackers
from tests.helpers.tiny_runs import distill

PHASE = PhasePlan.uniform(1)[0]


class Listed(Tracker):
    name = "listed"

    def __init__(self, run):
        super().__init__(run)
        self.seen = []

    def log(self, values, step):
        self.seen.append((step, dict(values)))

    def log_picture(self, name, path, step):
        self.seen.append((step, name))

    def close(self):
        self.seen.append("closed")


class Broken(Listed):
    name = "broken"

    def log(self, values, step):
        raise RuntimeError("no network")


def test_every_tracker_is_shown_the_same_and_a_failing_one_is_reported_once(tmp_path, capsys):
    run = TrackedRun(folder=tmp_path)
    broken, listed = Broken(run), Listed(run)
    recorder = RunRecorder(tmp_path, progress=False, trackers=[broken, listed])
    recorder.on_phase_start(PHASE, 1, 20, 0)
    Image.new("RGB", (4, 4)).save(tmp_path / "grid.png")
    recorder.on_scalars(PHASE, 10, {"loss": 1.0})
    recorder.on_throughput(PHASE, 10, {"throughput/samples_per_second": 5.0})
    recorder.on_validation(PHASE, 20, {"validation/distance": 0.5}, tmp_path / "grid.png")
    recorder.close()
    assert listed.seen == [
        (10, {"loss": 1.0}),
        (10, {"throughput/samples_per_second": 5.0}),
        (20, {"validation/distance": 0.5}),
        (20, "validation"),
        "closed",
    ]
    said = capsys.readouterr().err
    assert said.count("broken could not be written (no network); training goes on") == 1


OFFLINE = """
import sys
from pathlib import Path
from PIL import Image
from pdmd.training.monitoring.trackers import TrackedRun, trackers

folder = Path(sys.argv[1])
for first in (1, 3):
    tracker = trackers["wandb"](TrackedRun(folder=folder, config={"train": {"lr": 0.1}}))
    for step in (first, first + 1):
        tracker.log({"loss": 1 / step}, step)
    Image.new("RGB", (4, 4)).save(folder / "grid.png")
    tracker.log_picture("validation", folder / "grid.png", step)
    tracker.close()
"""


@pytest.mark.slow
def test_wandb_offline_continues_the_run_of_the_folder(tmp_path):
    pytest.importorskip("wandb")
    environment = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "HOME": str(tmp_path)}
    import os

    subprocess.run(
        [sys.executable, "-c", OFFLINE, str(tmp_path)],
        env={**os.environ, **environment},
        check=True,
        timeout=120,
    )
    runs = sorted(p.name for p in (tmp_path / "wandb").glob("offline-run-*"))
    assert runs and {name.rsplit("-", 1)[1] for name in runs} == {
        (tmp_path / "wandb_id").read_text().strip()
    }
    assert list((tmp_path / "wandb").glob("offline-run-*/files/media/images/validation*.png"))


def test_a_tracker_that_is_not_installed_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(MissingExtra, match=r"pip install 'pdmd\[trackio\]'"):
        TrackioTracker(TrackedRun(folder=tmp_path))


def test_an_unknown_tracker_is_an_error_before_any_work(tmp_path, capsys):
    words = ["distill", "mixture", "--out", str(tmp_path / "run"), "--tracking.trackers", "mlflow"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "mlflow" in error and "tensorboard" in error and not (tmp_path / "run").exists()


def test_a_registered_tracker_is_chosen_by_name_in_lines_without_a_terminal(tmp_path, capsys):
    made = []

    class Plugin(Listed):
        def __init__(self, run):
            super().__init__(run)
            made.append(self)

    trackers.register("plugin", Plugin)
    words = ["--tracking.trackers", "plugin", "--validation.every=6", "--progress"]
    assert distill(tmp_path / "run", *words, "--health.every=3") == 0
    (tracker,) = made
    assert tracker.run.config["train"]["updates"] == 6
    shown = {name for _, values in tracker.seen[:-1] for name in values if values != "validation"}
    assert {"fake/score_matching", "health/contrast", "validation/distance"} <= shown
    assert "throughput/samples_per_second" in shown and "seconds/fake" in shown
    assert not (tmp_path / "run" / "tensorboard").exists()
    said = capsys.readouterr().err
    assert "phase 2/2  t 0.5 to 0  update 6/6  fake " in said and " samples/s" in said
    assert "update/s]" not in said  # no bar of updates
    rows = (tmp_path / "run" / "throughput.jsonl").read_text().splitlines()
    assert [json.loads(row)["phase"] for row in rows] == [1, 2]
