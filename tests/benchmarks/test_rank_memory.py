"""Private memory of ranks, from loading a teacher to its export, against the bound."""

import pytest

from pdmd.benchmarks.rank_memory import STAGES, measure_ranks
from pdmd.benchmarks.rank_walk import write_teacher

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(
    "adapted", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["full", "lora"]
)
def test_two_ranks_of_a_small_network_are_within_the_bound(tmp_path, adapted):
    write_teacher(tmp_path / "teacher", 8)
    peaks, bounds = measure_ranks(tmp_path / "teacher", 2, adapted=adapted, slack=160 << 20)
    for stage, _ in STAGES:
        for peak in peaks:
            assert 0 < peak[stage] < bounds[stage]["bound"], stage
