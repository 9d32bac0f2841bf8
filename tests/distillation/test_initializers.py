"""Initializers: which network an expert or a fake score starts from."""

import pytest
import torch

from pdmd import FromPrevious, FromTeacher, LowRankRoles, PhasePlan
from pdmd.training.checkpoints.checkpointer import Checkpointer, Interrupted
from pdmd.training.monitoring.recorder import Recorder
from tests.helpers.adapters import FOUR, TWO, run, shaken, teacher_of


class StopAt(Recorder):
    def __init__(self, checkpointer, after):
        self.checkpointer, self.after = checkpointer, after

    def on_update(self, update):
        self.after -= 1
        self.checkpointer.stop_requested = self.after == 0


@pytest.mark.parametrize("start", [FromTeacher(), FromPrevious()], ids=["teacher", "previous"])
def test_a_resumed_run_has_the_same_bits(tmp_path, start):
    teacher, init = teacher_of("wan_2.2_a14b"), LowRankRoles(FOUR, TWO, start=start)
    whole = run(teacher, init)[2].state_dict()
    for stop in (1, 2, 0):
        checkpointer = Checkpointer(tmp_path / "checkpoint", every=1)
        try:
            student = run(
                teacher,
                init,
                checkpointer=checkpointer,
                recorder=StopAt(checkpointer, stop),
                resume=checkpointer.exists(),
            )[2]
        except Interrupted:
            assert stop
    assert all(torch.equal(v, whole[k]) for k, v in student.state_dict().items())


def test_from_previous_copies_the_factors_of_the_previous_adapter():
    teacher = teacher_of("wan_2.2_a14b")
    init = LowRankRoles(FOUR, start=FromPrevious())
    plan = PhasePlan.from_timesteps([1, 0.875, 0])
    first = init.expert(teacher, plan[0], [])
    assert first.base is teacher.routed.denoisers[0]
    from pdmd import OdeExpert

    second = init.expert(teacher, plan[1], [OdeExpert(shaken(first), plan[0])])
    assert second.base is teacher.routed.denoisers[1]  # that of its phase, as saved and exported
    assert all(
        torch.equal(v, second.state_dict()[k]) and v is not second.state_dict()[k]
        for k, v in first.state_dict().items()
    )
