"""Time limits: when a scheduler ends the job, and a run stops in time to write a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["TimeLimit"]

SLURM_END = "SLURM_JOB_END_TIME"


@dataclass(frozen=True, kw_only=True)
class TimeLimit:
    """The end of a job, and how long before it a run stops.

    Attributes:
        end: When the job ends, in seconds of Unix time.
        before: Seconds before the end at which the run writes a checkpoint and stops, after its
            current update.

    Raises:
        ValueError: If ``before`` is negative.
    """

    end: float
    before: float

    def __post_init__(self) -> None:
        if not self.before >= 0:
            raise ValueError(f"the time before a limit must not be negative, got {self.before} s")

    @classmethod
    def of_job(cls, before: float, environment: Mapping[str, str] | None = None) -> TimeLimit:
        """Returns the time limit of this Slurm job.

        Args:
            before: As in the class.
            environment: Where ``SLURM_JOB_END_TIME`` is; the process's environment by default.

        Raises:
            ValueError: If the variable is not there.
        """
        text = (os.environ if environment is None else environment).get(SLURM_END, "")
        try:
            return cls(end=float(text), before=before)
        except ValueError as error:
            raise ValueError(
                f"the end of the job is not known: Slurm sets {SLURM_END}, which is "
                f"{text or 'not set'!r} here; give the time limit too, for example "
                "--train.time-limit 24h"
            ) from error

    def reached(self, now: float) -> bool:
        """Returns whether to stop.

        Args:
            now: The current Unix time, in seconds.
        """
        return now >= self.end - self.before
