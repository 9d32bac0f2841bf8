"""Recorders: what a run writes about its progress."""

import time

from pdmd import PhasePlan
from pdmd.training.monitoring.recorder import RunRecorder


def test_tensorboard_shows_every_update_once_after_a_resume(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    plan = PhasePlan.uniform(2)
    recorder = RunRecorder(tmp_path, progress=False)
    for phase, last in zip(plan, (40, 30), strict=True):
        recorder.on_phase_start(phase, 2, 40, 0)
        for update in range(10, last + 1, 10):
            recorder.on_scalars(phase, update, {"loss": 1.0})
    recorder.close()
    time.sleep(1.1)  # TensorBoard reads files in the order of the second in their names
    resumed = RunRecorder(tmp_path, progress=False)
    resumed.on_resume(2, 10)
    resumed.on_phase_start(plan[1], 2, 40, 10)
    for update in (20, 30, 40):
        resumed.on_scalars(plan[1], update, {"loss": 2.0})
    resumed.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(e.step, e.value) for e in events] == [
        *((step, 1.0) for step in (10, 20, 30, 40, 50)),
        *((step, 2.0) for step in (60, 70, 80)),
    ]
