"""Notices: what a distillation says in one line about its inputs, and does not stop for.

They are printed when found, and listed in the report (:meth:`Recorder.on_notice`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from pdmd.diffusion.denoisers import Denoiser
from pdmd.distillation.phases import BOUNDED, PhasePlan
from pdmd.distillation.students import Student
from pdmd.objectives.base import Objective
from pdmd.objectives.score_matching import SubintervalScoreMatching
from pdmd.objectives.terms import terms_of
from pdmd.teachers.base import Teacher
from pdmd.teachers.guided import Guided, unguided
from pdmd.teachers.with_schedule import WithSchedule
from pdmd.training.conditions import ConditionStream
from pdmd.training.monitoring.self_calibration import NUMBERS, ROWS, own_slopes
from pdmd.training.session import Session
from pdmd.typing import Condition

__all__ = ["objective_notice", "plan_notice", "prompt_notice", "score_notice"]

MOST = 0.9
"""The largest share of noise at which the last of several steps may start without a notice."""

LEAST = 0.7
"""The lowest slope of a right teacher. A wrong sign, direction of time, kind, or random weights
give 0.65 or less at some time. Above 1 it says nothing: a few steps shorten the samples."""


def prompt_notice(teacher: Teacher, prompts: Sequence[Any]) -> str:
    """Returns a line if a teacher that takes prompts is given the null prompt alone, else ``""``.

    Args:
        teacher: The teacher.
        prompts: The prompts of the distillation.
    """
    some = [prompts[i] for i in range(min(2, len(prompts)))]
    if not some or any(prompt is not None for prompt in some) or teacher.encode([None]) is None:
        return ""
    return (
        f"the only prompt is the null prompt, so the student learns the unconditional samples of "
        f"{type(unguided(teacher)).__name__}; pass prompts=[...], or override its property prompts"
    )


def plan_notice(teacher: Teacher, plan: PhasePlan) -> str:
    """Returns a line if all steps of a plan lie where hardly any data is left, else ``""``.

    So do equal steps of time on schedules whose noise is many times the data.

    Args:
        teacher: The teacher.
        plan: The phases.
    """
    schedule = teacher.schedule
    if plan.nfe < 2 or schedule.prior_std() <= BOUNDED:
        return ""
    t = plan.timesteps[-2]
    alpha, sigma = (float(c) for c in schedule(t))
    if sigma <= MOST * (alpha + sigma):
        return ""
    return (
        f"at t = {t:.3g}, where the last step of the plan starts, the noise of {schedule!r} is "
        f"still {sigma / alpha:.3g} times the signal; place steps by log-SNR, as "
        f"PhasePlan.on(teacher.schedule, {len(plan)}) does"
    )


def objective_notice(objective: Objective) -> str:
    """Returns a line if no term of the fake score's objective is score matching, else ``""``.

    Args:
        objective: The fake score's objective.
    """
    if any(isinstance(term, SubintervalScoreMatching) for term in terms_of(objective)):
        return ""
    return (
        f"no term of the fake score's objective ({', '.join(objective.names)}) is score matching: "
        "unless one of them learns the score of the student's samples, it stays the teacher's; "
        "add SubintervalScoreMatching()"
    )


def score_notice(
    teacher: Teacher, real: Denoiser, stream: ConditionStream, session: Session, batch: int
) -> str:
    """Returns a line if a teacher is not the score of its own samples, else ``""``.

    Students, which are no scores, and teachers whose time range does not reach noise are not
    checked. All ranks call it together.

    Args:
        teacher: The teacher.
        real: The teacher as it is placed.
        stream: The conditions.
        session: Its ranks share the rows.
        batch: How many samples are evaluated together, at most.
    """
    low, high = teacher.time_range
    if isinstance(unguided(teacher), Student) or high < 1 or low > 0.5:
        return ""
    ranks = session.runtime.ranks
    few = NUMBERS // math.prod(teacher.latent_shape)
    rows = -(-max(ROWS, min(few, 4 * ROWS)) // ranks.data_ranks)
    condition = _unguided_condition(teacher, _rows(stream, rows, ranks.data_rank))
    if condition is not None:
        condition = condition.to(real.device)
    slopes = own_slopes(real, condition, rows, ranks, min(batch, rows))
    if all(math.isfinite(slope) and slope >= LEAST for slope in slopes):
        return ""
    return (
        f"the teacher is not the score of its own samples (noise slopes {min(slopes):.2g} to "
        f"{max(slopes):.2g}, expected 1): are its weights trained, and its sign, direction of "
        "time, kind and schedule right? 'pdmd check' or pdmd.conformance.check(teacher) tells "
        "which; check_score=False leaves this out"
    )


def _rows(stream: ConditionStream, rows: int, rank: int) -> Condition:
    if stream.condition is None:
        return None
    count = int(stream.condition.batch_size[0])
    return stream.take(torch.tensor([(rank * rows + i) % count for i in range(rows)]))


def _unguided_condition(teacher: Teacher, condition: Condition) -> Condition:
    """Returns conditions for which guidance has no effect: the null prompt, if it is guided."""
    while isinstance(teacher, WithSchedule):
        teacher = teacher.teacher
    if condition is None or not isinstance(teacher, Guided) or teacher.null is None:
        return condition
    return teacher.unconditional(condition, teacher.null.to(condition.device))
