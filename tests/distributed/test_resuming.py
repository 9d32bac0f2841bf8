"""Runs on ranks that resume from a checkpoint, on the same or other ranks and degrees."""

import pytest
import torch

from pdmd import AdamRecipe, PhasePlan
from pdmd.distributed.runtime import OneProcess
from pdmd.training.monitoring.recorder import Recorder
from tests.distributed.ranks import run_ranks
from tests.distributed.test_titan import digits, furthest
from tests.helpers.distilling import distill

pytestmark = pytest.mark.distributed


def resumed(folder, degrees, stop):
    """Distills in this process or on these ranks, from the newest checkpoint of a folder."""
    from pdmd.distributed.titan import TitanRuntime
    from pdmd.training.checkpoints.checkpointer import Checkpointer, Interrupted

    runtime = OneProcess() if degrees is None else TitanRuntime(**degrees)
    checkpointer = Checkpointer(folder, every=1)

    class Stop(Recorder):
        def on_update(self, update):
            nonlocal stop
            stop -= 1
            checkpointer.stop_requested = stop == 0

    try:
        student = distill(
            digits(),
            PhasePlan.uniform(2),
            updates=3,
            fake_updates=1,
            batch_size=8,
            optimizer=AdamRecipe(lr=1e-4),
            recorder=Stop(),
            checkpointer=checkpointer,
            resume=checkpointer.exists(),
            runtime=runtime,
        )
    except Interrupted:
        return None
    return runtime.states.full(student)


def test_a_run_resumes_on_other_ranks_and_degrees(tmp_path):
    whole = resumed(tmp_path / "whole", None, 0)
    assert run_ranks(resumed, 2, tmp_path / "a", {}, 1) == [None, None]  # FSDP, in phase 1
    assert resumed(tmp_path / "a", None, 1) is None
    assert run_ranks(resumed, 2, tmp_path / "a", {"tp": 2}, 2) == [None, None]  # into phase 2
    for weights in run_ranks(resumed, 2, tmp_path / "a", {}, 0):
        for name, expected in whole.items():
            assert furthest(weights[name], expected) < 1e-4, name


@pytest.mark.parametrize("degrees", [{}, {"tp": 2}], ids=["fsdp", "tp"])
@pytest.mark.slow
def test_a_run_on_ranks_resumes_to_the_same_bits(tmp_path, degrees):
    (whole, _) = run_ranks(resumed, 2, tmp_path / "whole", degrees, 0)
    for stop in (2, 2):
        assert run_ranks(resumed, 2, tmp_path / "a", degrees, stop) == [None, None]
    (weights, _) = run_ranks(resumed, 2, tmp_path / "a", degrees, 0)
    assert all(torch.equal(weights[name], whole[name]) for name in whole)
