"""Chaos: runs of random settings end with the same bits, whatever happens to them.

``PDMD_CHAOS_SECONDS`` sets how long each kind goes on (600 by default), and ``PDMD_CHAOS_SEED``
the seed of the first run; both are printed with every failure.
"""

import os
import time

import pytest

from tests.helpers.chaos import endure


def test_a_disturbed_run_ends_with_the_same_bits(tmp_path):
    counts = endure(tmp_path, seed=1058, kills=3, deadline=time.monotonic() + 120)
    assert sum(counts.values()) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [{"adapters": False}, {"adapters": True}, {"ranks": 2}],
    ids=["networks", "adapters", "ranks"],
)
def test_random_runs_disturbed_at_random_end_with_the_same_bits(tmp_path, more):
    seconds = float(os.environ.get("PDMD_CHAOS_SECONDS", "600"))
    seed = int(os.environ.get("PDMD_CHAOS_SEED", str(time.time_ns() % 10**6)))
    deadline, total, runs = time.monotonic() + seconds, {}, 0
    while runs == 0 or time.monotonic() < deadline:
        folder = tmp_path / str(seed + runs)
        folder.mkdir()
        counts = endure(folder, seed + runs, kills=40, deadline=deadline, **more)
        total = {what: total.get(what, 0) + n for what, n in counts.items()}
        runs += 1
        print(f"{runs} runs from seed {seed}, disturbed {sum(total.values())} times: {total}")
