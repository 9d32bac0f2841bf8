"""Checkpointers: a resumed run equals one that was not interrupted."""

import pytest
import torch

from pdmd.training.checkpoints.checkpointer import Checkpointer, Interrupted
from pdmd.training.checkpoints.store import Store
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
    names = [path.name for path in (tmp_path / "c").iterdir()]
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


def test_changed_prompts_are_noticed_in_python(tmp_path):
    small(checkpointer=Checkpointer(tmp_path / "c"), prompts=[0, 1, 1])
    with pytest.raises(ValueError, match=r"prompts has changed \(the list of 2 instead of the l"):
        small(checkpointer=Checkpointer(tmp_path / "c"), prompts=[0, 1], resume=True)
    allowed = Checkpointer(tmp_path / "c", allow_changed=True)
    small(checkpointer=allowed, prompts=[0, 1], resume=True)
