"""Validation of a distillation, before any work: its plan, objectives, prompts and teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.solvers import ode_step
from pdmd.distillation.phases import PhasePlan
from pdmd.objectives.base import Objective
from pdmd.randomness import randn
from pdmd.teachers.base import Teacher
from pdmd.training.fake_scores import FakeScores
from pdmd.training.rollouts import Rollouts
from pdmd.typing import Conditions

__all__ = ["check_fake_scores", "check_objectives", "check_teacher", "encode", "updates_of"]


def updates_of(plan: PhasePlan, updates: int | Sequence[int]) -> list[int]:
    """Returns the updates of every phase's expert.

    Args:
        plan: The phases.
        updates: One number for all phases, or one each.

    Raises:
        ValueError: If their number is not the plan's, or one is below 1.
    """
    per_phase = [updates] * len(plan) if isinstance(updates, int) else list(updates)
    if len(per_phase) != len(plan):
        raise ValueError(f"got updates for {len(per_phase)} phases, but the plan has {len(plan)}")
    if min(per_phase) < 1:
        raise ValueError(f"updates must be at least 1, got {min(per_phase)}")
    return per_phase


def encode(teacher: Teacher, prompts: Sequence[Any] | None) -> Conditions | None:
    """Encodes the prompts of a distillation, the teacher's own by default.

    Raises:
        ValueError: If the prompts are a text rather than a sequence of prompts.
    """
    if isinstance(prompts, str):
        raise ValueError(
            f"prompts are a sequence of prompts, got the text {prompts!r}; pass a list"
        )
    return teacher.conditions(teacher.prompts if prompts is None else prompts)


def check_objectives(plan: PhasePlan, generator: Objective, fake: Objective) -> None:
    """Checks that both roles have a loss in every phase.

    Raises:
        ValueError: If one has none, or its times are empty in a phase.
    """
    for role, objective in (("generator", generator), ("fake score", fake)):
        for index in sorted(set(range(len(plan))) - objective.covers(plan)):
            raise ValueError(
                f"the {role}'s objective has no loss in phase {index + 1}; add a term that is "
                "active in every phase"
            )
    for phase in plan:
        fake.time_bounds(phase)  # for its errors


def check_fake_scores(plan: PhasePlan, rollouts: Rollouts, scores: FakeScores) -> None:
    """Checks that every fake score is trained.

    Raises:
        ValueError: If rollouts never exit where one would be trained.
    """
    for phase in plan:
        exit_step = rollouts.truncation(phase, torch.Generator().manual_seed(0))
        if exit_step is None and scores.number(phase) > 1:
            raise ValueError(
                f"{rollouts.truncation} takes every step of phase {phase.index + 1}, so {scores} "
                "would leave all its fake scores but one untrained; use OneFakeScore()"
            )


@torch.no_grad()
def check_teacher(
    teacher: Denoiser,
    plan: PhasePlan,
    objective: Objective,
    condition: Conditions | None,
) -> None:
    """Evaluates the teacher once at both ends of every step and score range.

    Args:
        teacher: The teacher.
        plan: The phases.
        objective: What the experts minimise, for the times at which it evaluates the teacher.
        condition: Encoded prompts, of which the first two are used, or ``None``.

    Raises:
        ValueError: If the plan leaves the teacher's time range, or a prediction has the wrong
            shape or is not finite.
    """
    low, high = teacher.time_range
    generator = torch.Generator().manual_seed(0)
    rows = None if condition is None else condition[:2].to(teacher.device)
    n = 2 if rows is None else int(rows.batch_size[0])
    x = randn((n, *teacher.latent_shape), generator, device=teacher.device)
    for phase in plan:
        for t in (*phase.timesteps, *(objective.time_bounds(phase) or ())):
            if not low <= t <= high:
                remedy = "move the plan or the time margin into the range"
                if t == 1:  # where every plan starts
                    remedy = (
                        "use a schedule that ends where the teacher does, with "
                        "WithSchedule.reach(teacher, schedule) or --teacher.schedule-end teacher"
                    )
                raise ValueError(
                    f"phase {phase.index + 1} evaluates the teacher at t = {t:.4g}, outside its "
                    f"range [{low:.4g}, {high:.4g}]; {remedy}"
                )
            prediction = teacher(x, t, rows)
            value = prediction.value
            if value.shape != x.shape:
                raise ValueError(
                    f"the teacher returned shape {tuple(value.shape)} for latents of shape "
                    f"{tuple(x.shape)}; its network must keep the shape"
                )
            if not bool(value.isfinite().all()):
                raise ValueError(
                    f"the teacher's output at t = {t:.4g} is not finite; check its weights and "
                    "time range"
                )
            step = t in phase.timesteps
            if step and not bool(ode_step(prediction, phase.t_end).isfinite().all()):
                raise ValueError(
                    f"no step can be taken from a prediction of {teacher.kind} at t = {t:.4g}, "
                    "where the schedule leaves no signal; predict x0, velocity or v_prediction, "
                    "or use a schedule with signal left at t = 1"
                )
