"""Progress bars of a distillation in Python."""

import re

import pytest

from pdmd import PhasePlan, Session
from pdmd.distributed.runtime import OneProcess
from pdmd.training.monitoring.progress import ProgressRecorder
from pdmd.training.monitoring.recorder import NullRecorder, Recorder
from tests.helpers.small_runs import small, weights


def test_a_bar_of_each_phase_ends_at_its_updates_and_changes_no_result(capfd):
    plain = small(plan=PhasePlan.uniform(2), updates=12)
    assert capfd.readouterr().err == ""
    shown = small(plan=PhasePlan.uniform(2), updates=12, progress=True)
    err = capfd.readouterr().err
    for title in (r"phase 1/2  t 1 to 0\.5", r"phase 2/2  t 0\.5 to 0"):
        assert re.search(rf"{title}: 100%.* 12/12 .*generator=", err), err
    assert weights(shown).equal(weights(plain))


class OtherRank(OneProcess):
    main = False


@pytest.mark.parametrize("recorder", [Recorder, NullRecorder, ProgressRecorder])
def test_only_the_main_rank_without_a_recorder_shows_them(recorder):
    session = Session(recorder=recorder())
    kept = session.with_progress() is session
    assert kept == (recorder is not Recorder)
    other = Session(runtime=OtherRank())
    assert other.with_progress() is other
