"""Outputs: those that fail end no training."""

import json
import shutil
import sys

from pdmd import PhasePlan
from pdmd.training.monitoring.outputs import Outputs
from pdmd.training.monitoring.recorder import RunRecorder, read_history


def test_a_failing_output_is_reported_once():
    said = []
    outputs = Outputs(said.append)

    def full():
        raise OSError(28, "No space left on device")

    assert [outputs.attempt("a", full), outputs.attempt("a", full)] == [False, False]
    assert outputs.attempt("b", lambda: None)
    assert len(said) == 1 and "a could not be written ([Errno 28] No space left" in said[0]


def test_scalars_go_on_after_the_folders_were_removed(tmp_path, capsys):
    folder, phase = tmp_path / "run", PhasePlan.uniform(2).phases[0]
    recorder = RunRecorder(folder, progress=False)
    recorder.on_phase_start(phase, 2, 10, 0)
    recorder.on_scalars(phase, 1, {"loss": 1.0})
    shutil.rmtree(folder / "tensorboard")
    recorder.on_scalars(phase, 2, {"loss": 2.0})
    assert len(list((folder / "tensorboard").iterdir())) == 1
    assert [row["update"] for row in read_history(folder / "history.jsonl")] == [1, 2]
    shutil.rmtree(folder)
    recorder.on_scalars(phase, 3, {"loss": 3.0})
    recorder.on_calibration(phase, [0.5], [1.0], [1.0])
    recorder.close()
    assert [row["update"] for row in read_history(folder / "history.jsonl")] == [3]
    assert json.loads((folder / "calibration.json").read_text())[0]["fake"] == [1.0]
    assert capsys.readouterr().err == ""


def test_what_cannot_be_written_is_reported_and_closed_streams_are_not(tmp_path, monkeypatch):
    phase, said = PhasePlan.uniform(2).phases[0], []
    recorder = RunRecorder(tmp_path / "run", progress=True)
    recorder.outputs.report = said.append
    recorder.on_phase_start(phase, 2, 10, 0)
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").write_text("a file")
    with (tmp_path / "closed").open("w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
    recorder.on_warning("skipped")
    for update in (1, 2):
        recorder.on_update(update)
        recorder.on_scalars(phase, update, {"loss": 1.0})
    recorder.on_calibration(phase, [0.5], [1.0], [1.0])
    recorder.close()
    names = ["history.jsonl", "tensorboard/", "calibration.json"]
    assert [line.split(" could not")[0].removeprefix("pdmd: warning: ") for line in said] == names
