"""The watchdog: failures of other ranks are reported, and regular exits are not."""

import pytest
import torch.distributed as dist

from pdmd.distributed.watchdog import Watchdog
from tests.distributed.ranks import run_ranks


def test_a_timeout_below_two_intervals_raises():
    with pytest.raises(ValueError, match="2 s is too short for a heartbeat every 1 s"):
        Watchdog(heartbeat_timeout=2, interval=1)


def failures():
    """Returns the report of every rank after a regular exit, and after an error of rank 1."""
    reports = []
    for error in ("", "out of memory"):
        watchdog = Watchdog(heartbeat_timeout=20, interval=0.2)
        watchdog.start()
        if dist.get_rank() == 1:
            watchdog.stop(error)
            reports.append("")
        else:
            reports.append(watchdog.failed_rank())
            watchdog.stop()
        dist.barrier()
    return reports


@pytest.mark.distributed
def test_the_error_of_another_rank_is_reported():
    assert run_ranks(failures, 2) == [["", "rank 1 stopped: out of memory"], ["", ""]]
