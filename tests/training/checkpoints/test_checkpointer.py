"""Checkpointers: a resumed run equals one that was not interrupted."""

import shutil
import time

import pytest
import torch

from pdmd import (
    AdamRecipe,
    FromDenoiser,
    LowRank,
    LowRankRoles,
    MlpDenoiser,
    PhasePlan,
)
from pdmd.training.checkpoints.checkpointer import Checkpointer, Interrupted
from pdmd.training.checkpoints.intervals import Interval
from pdmd.training.checkpoints.store import Store
from pdmd.training.checkpoints.time_limits import TimeLimit
from pdmd.training.monitoring.accounting import Account
from pdmd.training.monitoring.recorder import Recorder
from tests.helpers.checkpoints import fail
from tests.helpers.faults import faults
from tests.helpers.small_runs import StopAt, small, weights


@pytest.mark.parametrize("after", [1, 4, 6, 9])
def test_a_resumed_run_is_bit_identical(tmp_path, after):
    checkpointer, accounts = Checkpointer(tmp_path / "c", every=100), [Account(), Account()]
    with pytest.raises(Interrupted):
        small(checkpointer=checkpointer, recorder=StopAt(checkpointer, after))
    again = Checkpointer(tmp_path / "c", every=100)
    resumed = small(checkpointer=again, resume=True, account=accounts[0])
    assert torch.equal(weights(resumed), weights(small(account=accounts[1])))
    assert accounts[0].state() == accounts[1].state()


def test_a_flipped_byte_in_a_checkpoint_raises(tmp_path):
    small(checkpointer=Checkpointer(tmp_path / "c"))
    path = max((tmp_path / "c").glob("*/*.distcp"))
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(ValueError, match="update-000000006.*damaged.*phase-0002-update-0+ ?"):
        small(checkpointer=Checkpointer(tmp_path / "c"), resume=True)
    again = Checkpointer(tmp_path / "c", name="phase-0002-update-000000000")
    assert torch.equal(weights(small(checkpointer=again, resume=True)), weights(small()))
    assert again.store.latest() == "phase-0002-update-000000006"  # the damaged one is replaced


def test_resuming_with_other_settings_raises(tmp_path):
    checkpointer = Checkpointer(tmp_path / "c", fingerprint={"lr": 1})
    small(checkpointer=checkpointer)
    with pytest.raises(ValueError, match="lr = 1"):
        small(checkpointer=Checkpointer(tmp_path / "c", fingerprint={"lr": 2}), resume=True)


def stopped(folder, after, **settings):
    checkpointer = Checkpointer(folder)
    with pytest.raises(Interrupted):
        small(checkpointer=checkpointer, recorder=StopAt(checkpointer, after), **settings)


@pytest.mark.parametrize("after", [3, 9])
@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (PhasePlan.uniform(2, steps=2, shift=3.0), "phase 1 from .*at .1.0, 0.75., to 0.5"),
        (PhasePlan.uniform(3, steps=2), "phase 1 from .*trained at"),
        (PhasePlan.uniform(1, steps=2), "phase (1 from|2, but the plan has 1)"),
    ],
)
def test_resuming_with_another_plan_raises(tmp_path, after, plan, message):
    stopped(tmp_path / "c", after)
    with pytest.raises(ValueError, match=message):
        small(plan=plan, checkpointer=Checkpointer(tmp_path / "c"), resume=True)


def test_a_new_run_keeps_off_the_checkpoints_of_another(tmp_path):
    stopped(tmp_path / "c", 9)
    checkpointer, starts = Checkpointer(tmp_path / "c", every=1), []
    recorder = Recorder()
    recorder.on_phase_start = lambda *arguments: starts.append(arguments)
    with pytest.raises(ValueError, match="earlier run: the last good .*0002-.*resume=True"):
        small(checkpointer=checkpointer, recorder=recorder)
    assert not starts and checkpointer.exists()
    checkpointer.clear()
    assert torch.equal(weights(small(checkpointer=checkpointer)), weights(small()))


def test_phases_that_no_checkpoint_has_trained_may_change(tmp_path):
    stopped(tmp_path / "c", 3)
    plan = PhasePlan.from_timesteps([1.0, 0.75, 0.5, 0.3, 0.2, 0.0], steps=[2, 3])
    assert small(plan=plan, checkpointer=Checkpointer(tmp_path / "c"), resume=True).plan == plan


def test_resuming_with_other_trained_weights_raises(tmp_path):
    stopped(tmp_path / "c", 3)
    network = MlpDenoiser.rectified_flow(dim=2, classes=2, width=8)
    adapted = LowRankRoles(LowRank(rank=2), start=FromDenoiser(network))
    with pytest.raises(ValueError, match="its generator trained 0.*which this run does not"):
        small(init=adapted, checkpointer=Checkpointer(tmp_path / "c"), resume=True)


class Reports(Recorder):
    def __init__(self):
        self.warnings = []

    def on_warning(self, warning):
        self.warnings.append(warning)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_checkpoint_that_cannot_be_written_ends_no_training(tmp_path, asynchronous):
    store = Store(f"faulty://{tmp_path}/c", asynchronous=asynchronous)
    checkpointer = Checkpointer(store, every=2)
    written = []

    class Full(Reports):
        def on_update(self, update):
            checkpointer.wait()
            written.append(store.latest())
            faults.arm(None, fail if 3 <= len(written) <= 5 else None)

    recorder = Full()
    student = small(checkpointer=checkpointer, recorder=recorder)
    faults.arm(None, None)
    assert torch.equal(weights(student), weights(small()))
    assert recorder.warnings and all("no space left" in text for text in recorder.warnings)
    assert "the last good checkpoint is phase-0001-update-000000002" in recorder.warnings[0]
    assert store.latest() == "phase-0002-update-000000006"
    names = [path.name for path in (tmp_path / "c").iterdir() if path.name != "experts"]
    assert sorted(names) == store.names()  # what a failed save began is gone


def test_an_error_between_updates_leaves_a_checkpoint(tmp_path):
    class Failing(Recorder):
        def on_update(self, update):
            if update == 5:
                raise RuntimeError("the tracker is gone")

    checkpointer = Checkpointer(tmp_path / "c", every=100)
    with pytest.raises(RuntimeError, match="the tracker is gone"):
        small(checkpointer=checkpointer, recorder=Failing())
    assert checkpointer.store.names() == ["phase-0001-update-000000005"]
    resumed = small(checkpointer=Checkpointer(tmp_path / "c"), resume=True)
    assert torch.equal(weights(resumed), weights(small()))


class Saves(Recorder):
    """Moves a clock by a minute an update."""

    def __init__(self, clock):
        self.clock = clock

    def on_update(self, update):
        self.clock[0] += 60.0


def test_checkpoints_are_written_after_minutes_since_the_last(tmp_path, monkeypatch):
    clock, names = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    checkpointer = Checkpointer(tmp_path / "c", every=Interval(minutes=2))
    save = checkpointer.store.save
    monkeypatch.setattr(checkpointer.store, "save", lambda *a: (names.append(a[0]), save(*a)))
    small(checkpointer=checkpointer, recorder=Saves(clock), updates=5)
    first = [name[-3:] for name in names if name.startswith("phase-0001")]
    assert first == ["002", "004"]  # and the phase's end is the start of the next
    assert names[2].startswith("phase-0002-update-000000000")


def test_a_run_stops_before_its_time_limit_and_resumes(tmp_path, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    limit = TimeLimit(end=1000 + 60 * 7, before=60 * 2)
    checkpointer = Checkpointer(tmp_path / "c", every=100, limit=limit)
    with pytest.raises(Interrupted, match="after update"):
        small(checkpointer=checkpointer, recorder=Saves(clock))
    assert clock[0] == 1000 + 60 * 5
    resumed = small(checkpointer=Checkpointer(tmp_path / "c"), resume=True)
    assert torch.equal(weights(resumed), weights(small()))


def test_changed_prompts_are_noticed_in_python(tmp_path):
    small(checkpointer=Checkpointer(tmp_path / "c"), prompts=[0, 1, 1])
    with pytest.raises(ValueError, match=r"prompts has changed \(the list of 2 instead of the l"):
        small(checkpointer=Checkpointer(tmp_path / "c"), prompts=[0, 1], resume=True)
    allowed = Checkpointer(tmp_path / "c", allow_changed=True)
    small(checkpointer=allowed, prompts=[0, 1], resume=True)


def test_a_damaged_or_replaced_finished_expert_raises(tmp_path):
    small(checkpointer=Checkpointer(tmp_path / "c"))  # its last checkpoint refers to expert 1
    expert = tmp_path / "c" / "experts" / "expert-0001"
    path = next(expert.glob("*.distcp"))
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(ValueError, match="expert-0001/.*SHA-256.*checkpoint phase-0002"):
        small(checkpointer=Checkpointer(tmp_path / "c"), resume=True)
    path.write_bytes(content)
    again = Checkpointer(tmp_path / "c", name="phase-0002-update-000000000")
    assert torch.equal(weights(small(checkpointer=again, resume=True)), weights(small()))
    shutil.rmtree(expert)
    with pytest.raises(ValueError, match="expert-0001 is missing"):
        small(checkpointer=Checkpointer(tmp_path / "c"), resume=True)


def test_clearing_leaves_no_folder_of_experts(tmp_path):
    checkpointer = Checkpointer(tmp_path / "c")
    small(checkpointer=checkpointer)
    checkpointer.clear()
    assert not list((tmp_path / "c").iterdir())


def test_a_run_with_moments_in_8_bits_resumes_to_the_same_bits(tmp_path):
    pytest.importorskip("torchao")
    torch.manual_seed(0)
    network = MlpDenoiser.rectified_flow(dim=2, classes=2, width=64)
    recipes = {
        "optimizer": AdamRecipe(lr=1e-3, bits=8),
        "fake_optimizer": AdamRecipe(lr=1e-3, bits=8),
        "init": FromDenoiser(network),
    }
    checkpointer = Checkpointer(tmp_path / "c")
    with pytest.raises(Interrupted):
        small(checkpointer=checkpointer, recorder=StopAt(checkpointer, 4), **recipes)
    resumed = small(checkpointer=Checkpointer(tmp_path / "c"), resume=True, **recipes)
    whole = small(**recipes)
    assert torch.equal(weights(resumed), weights(whole))
    exact = {**recipes, "optimizer": AdamRecipe(lr=1e-3), "fake_optimizer": AdamRecipe(lr=1e-3)}
    assert not torch.equal(weights(small(**exact)), weights(whole))


def test_a_restart_resumes_from_the_newest_since_the_named_checkpoint(tmp_path):
    store = Store(tmp_path / "c", keep=9)
    small(checkpointer=Checkpointer(store, every=2))
    name = "phase-0001-update-000000002"
    named = Checkpointer(store, every=1, name=name)
    named.restart()
    assert named.name == name  # the newer ones were there before
    with pytest.raises(Interrupted):
        small(checkpointer=named, resume=True, recorder=StopAt(named, 2))
    again = Checkpointer(store, name=name)
    again.restart()
    assert store.latest() == "phase-0001-update-000000004" and not again.name
    assert torch.equal(weights(small(checkpointer=again, resume=True)), weights(small()))


def test_no_expert_is_stored_before_an_earlier_one(tmp_path):
    def full():
        raise OSError("no space left")

    checkpointer = Checkpointer(tmp_path / "c")
    checkpointer.save_expert(0, full)
    checkpointer.save_expert(1, lambda: {"x": torch.ones(1)})
    checkpointer.save("phase-0003-update-000000000", lambda: ({}, {}))
    assert not checkpointer.experts.names() and not checkpointer.exists()
