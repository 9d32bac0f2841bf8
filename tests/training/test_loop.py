"""The training loop: when recorders are called and checkpoints are written."""

import pytest

from pdmd import PhasePlan, Session
from pdmd.distillation.experts import Truncation
from pdmd.planning import Workload
from pdmd.training.checkpoints.checkpointer import Decision, Interrupted, NoCheckpoints
from pdmd.training.loop import calibrate, train_phase
from pdmd.training.monitoring.recorder import Recorder
from tests.helpers.trainings import SMALL, Images, trainer_of


class Events(Recorder):
    interval = 2

    def __init__(self):
        self.events = []

    def on_phase_start(self, phase, phases, updates, done):
        self.events.append(("start", phase.index, phases, updates, done))

    def on_update(self, update):
        self.events.append(("update", update))

    def on_scalars(self, phase, update, values):
        self.events.append(("scalars", update, sorted(values)))

    def on_calibration(self, phase, times, fake, real):
        self.events.append(("calibration", list(times), fake, real))


class Names(NoCheckpoints):
    """Records the names of checkpoints, and stops before a given update."""

    def __init__(self, every, stop=-1):
        self.every, self.stop, self.names = every, stop, []

    def decide(self, update, ranks):
        self.stop -= 1
        if self.stop == -1:
            return Decision.STOP
        return Decision.SAVE if update and update % self.every == 0 else Decision.CONTINUE

    def save(self, name, collect):
        tensors, cursor = collect()
        assert cursor["update"] is not None and "rng" in tensors
        self.names.append(name)


class FirstStep(Truncation):
    def __call__(self, phase, generator):
        return 0


def build(checkpointer, updates=5):
    work = Workload(
        plan=PhasePlan.uniform(2),
        truncation=FirstStep(),
        batch_size=2,
        fake_updates=1,
    )
    trainer = trainer_of(Images(**SMALL), work, 0)
    trainer.session = Session(recorder=Events(), checkpointer=checkpointer)
    trainer.updates = updates
    return trainer


def test_a_phase_reports_every_update_and_scalars_at_intervals_and_its_end():
    checkpointer = Names(every=2)
    running = build(checkpointer)
    train_phase(running, 2, [])
    events = running.session.recorder.events
    assert events[0] == ("start", 0, 2, 5, 0)
    assert [e[1] for e in events if e[0] == "update"] == [1, 2, 3, 4, 5]
    scalars = [e for e in events if e[0] == "scalars"]
    assert [e[1] for e in scalars] == [2, 4, 5]
    assert {"fake/score_matching", "generator/gradient_norm"} <= set(scalars[0][2])
    assert checkpointer.names == [f"phase-0001-update-{n:09d}" for n in (2, 4)]


def test_a_requested_stop_saves_between_updates_and_resumes_there():
    checkpointer = Names(every=100, stop=3)
    running = build(checkpointer)
    with pytest.raises(Interrupted, match="phase 1 after update 3"):
        train_phase(running, 2, [])
    assert checkpointer.names == ["phase-0001-update-000000003"]
    train_phase(running, 2, [])
    assert ("start", 0, 2, 5, 3) in running.session.recorder.events
    assert running.update == 5


def test_calibration_covers_the_time_bounds_of_the_objective():
    running = build(Names(every=100), updates=1)
    train_phase(running, 2, [])
    calibrate(running)
    (event,) = [e for e in running.session.recorder.events if e[0] == "calibration"]
    _, times, fake, real = event
    low, high = running.generator_objective.time_bounds(running.phase)
    assert times[0] == low and times[-1] == pytest.approx(high)
    assert len(times) == len(fake) == len(real) == 10


def test_a_recorder_without_calibrations_costs_no_evaluations():
    running = build(Names(every=100), updates=1)
    train_phase(running, 2, [])
    recorder, before = running.session.recorder, running.session.account.forward_equivalents
    recorder.calibrations = False
    calibrate(running)
    assert not [e for e in recorder.events if e[0] == "calibration"]
    assert running.session.account.forward_equivalents == before
