"""The look at a teacher's own samples on two ranks, over a sharded and guided teacher."""

import pytest

from pdmd import Guided, PhasePlan
from pdmd.distributed.runtime import OneProcess
from pdmd.teachers.packaged.digits import DigitsTeacher
from pdmd.training.monitoring.recorder import Recorder
from tests.conformance.test_scores import Misdeclared
from tests.distributed.ranks import run_ranks
from tests.helpers.distilling import distill

pytestmark = [pytest.mark.distributed, pytest.mark.slow]  # test_notices.py is the fast one


class Notices(Recorder):
    def __init__(self):
        self.lines = []

    def on_notice(self, notice):
        self.lines.append(notice)


def noticed(degrees, sign):
    """Distills for one update; returns the notices."""
    from pdmd.distributed.titan import TitanRuntime

    runtime = OneProcess() if degrees is None else TitanRuntime(**degrees)
    teacher, recorder = Misdeclared(DigitsTeacher.from_package(), sign=sign), Notices()
    distill(
        Guided(teacher, 2.0),
        PhasePlan.uniform(1),
        updates=1,
        batch_size=4,
        fake_updates=1,
        runtime=runtime,
        recorder=recorder,
        check_score=True,
    )
    return recorder.lines


@pytest.mark.parametrize("sign", [1, -1])
def test_two_ranks_find_what_one_process_does(sign):
    alone = noticed(None, sign)
    ranks = run_ranks(noticed, 2, {"dp_shard": 2}, sign)
    assert ranks[0] == ranks[1]  # of the same sums
    for lines in (alone, *ranks):
        assert ["not the score" in line for line in lines] == [True] * (sign < 0)
