"""Checkpointers: a resumed run equals one that was not interrupted."""

import pytest
import torch

from pdmd.training.checkpoints.checkpointer import Checkpointer, Interrupted
from pdmd.training.monitoring.accounting import Account
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
