"""Time limits: Slurm's, and how long before them a run stops."""

import pytest

from pdmd.training.checkpoints.time_limits import TimeLimit


def test_a_run_stops_before_the_end_of_its_slurm_job():
    limit = TimeLimit.of_job(600, {"SLURM_JOB_END_TIME": "1000000"})
    assert [limit.reached(now) for now in (0.0, 999_399.0, 999_400.0, 1e6 + 1)] == [
        *(False, False, True, True),
    ]


@pytest.mark.parametrize("environment", [{}, {"SLURM_JOB_END_TIME": "soon"}])
def test_without_an_end_of_the_job_there_is_an_error_with_the_remedy(environment):
    with pytest.raises(ValueError, match=r"SLURM_JOB_END_TIME.*--train\.time-limit 24h"):
        TimeLimit.of_job(600, environment)
