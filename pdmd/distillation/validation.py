"""Validation of a distillation before it starts: plan, objectives, prompts and teacher."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from typing import Any

import torch

from pdmd.arguments import describe, describe_error
from pdmd.diffusion.checks import inputs_kept
from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.modes import evaluation_mode
from pdmd.diffusion.predictions import Prediction
from pdmd.diffusion.routers import RoutedDenoiser
from pdmd.diffusion.solvers import ode_step
from pdmd.diffusion.time_intervals import within
from pdmd.distillation.buckets import Buckets
from pdmd.distillation.phases import Phase, PhasePlan
from pdmd.distributed.communicator import Communicator
from pdmd.distributed.placement import Placement
from pdmd.objectives.adversarial import DiscriminatorLoss
from pdmd.objectives.base import Objective
from pdmd.objectives.terms import terms_of
from pdmd.randomness import randn
from pdmd.teachers.base import Teacher
from pdmd.teachers.conditioning.prompts import check_prompts
from pdmd.teachers.guided import unguided
from pdmd.training.fake_scores import FakeScores
from pdmd.training.rollouts import Rollouts
from pdmd.typing import Condition, Conditions, Latents

__all__ = [
    "check_buckets",
    "check_fake_scores",
    "check_objectives",
    "check_discriminators",
    "check_own_type",
    "check_same_weights",
    "check_teacher",
    "check_times",
    "encode",
    "updates_of",
]


def updates_of(plan: PhasePlan, updates: int | Sequence[int]) -> list[int]:
    """Returns the updates of every phase's expert.

    Args:
        plan: The phases.
        updates: One number for all phases, or one per phase.

    Raises:
        ValueError: If there is not one number per phase, or one is below 1.
    """
    per_phase = [updates] * len(plan) if isinstance(updates, int) else [int(n) for n in updates]
    if len(per_phase) != len(plan):
        raise ValueError(f"got updates for {len(per_phase)} phases, but the plan has {len(plan)}")
    if min(per_phase) < 1:
        raise ValueError(f"updates must be at least 1, got {min(per_phase)}")
    return per_phase


def encode(teacher: Teacher, prompts: Sequence[Any] | None) -> Conditions | None:
    """Encodes the prompts of a distillation, without dropout; those of the teacher by default.

    Raises:
        TypeError: If the teacher's ``encode`` returns something else than a TensorDict.
        ValueError: If the prompts are a string rather than a sequence of prompts, or are not
            encoded into one row each.
    """
    check_prompts(prompts)
    listed = teacher.prompts if prompts is None else prompts
    with evaluation_mode(teacher), torch.no_grad():
        found = teacher.conditions(listed)
    if found is None:
        return None
    name = type(unguided(teacher)).__name__
    as_rows = "TensorDict({...}, batch_size=[len(prompts)])"
    shape = getattr(found, "batch_size", None)
    if shape is None:
        raise TypeError(
            f"{name}.encode returned {describe(found)}; return {as_rows}, or None from a teacher "
            "without conditions"
        )
    if not len(shape) or shape[0] != len(listed):
        raise ValueError(
            f"{name}.encode returned batch size {list(shape)} for {len(listed)} prompts; return "
            f"one row per prompt, as in {as_rows}"
        )
    return found


def check_objectives(
    plan: PhasePlan, generator_objective: Objective, fake_objective: Objective
) -> None:
    """Prepares the objectives for a distillation, and checks that both have losses in every phase.

    Raises:
        ValueError: If a role has none in a phase, its time range there is empty, or the generator
            evaluates critics there that the fake score's objective does not train.
    """
    fake_objective.on_distillation_start(plan, generator_objective)
    generator_objective.on_distillation_start(plan, fake_objective)
    for role, objective in (
        ("generator", generator_objective),
        ("fake score", fake_objective),
    ):
        for number in sorted({phase.number for phase in plan} - objective.covers(plan)):
            raise ValueError(
                f"the {role}'s objective has no loss in phase {number}; add a term that is "
                "active in every phase"
            )
    for phase in plan:
        fake_objective.time_bounds(phase)  # raises if the range is empty
        trained = fake_objective.shared(phase)
        for critics in generator_objective.shared(phase):
            if critics not in trained:
                raise ValueError(
                    f"the generator's objective evaluates {critics!r} in phase {phase.number}, "
                    "but no term of the fake score's objective trains them there; add "
                    "DiscriminatorLoss with the same critics"
                )


def check_discriminators(objective: Objective, teacher: Teacher, placement: Placement) -> None:
    """Checks the real samples of discriminator losses, and that critics can be differentiated.

    Args:
        objective: The fake score's objective.
        teacher: The teacher.
        placement: Where networks are placed.

    Raises:
        ValueError: If real samples are not of the teacher's latents, or cannot be read, or a
            penalty would differentiate a critic twice that will be sharded.
    """
    for term in terms_of(objective):
        if not isinstance(term, DiscriminatorLoss):
            continue
        term.real_samples.check(teacher)
        twice = term.penalty_weight and term.penalty.second_derivatives
        if twice and not placement.in_place:
            raise ValueError(
                f"the penalty {term.penalty} differentiates a critic twice, which sharded "
                'networks do not support; use FiniteDifferenceR1 (penalty = "finite_difference_r1"'
                "), a penalty_weight of 0, or one process"
            )


def check_same_weights(teacher: Denoiser, ranks: Communicator) -> None:
    """Checks that all ranks have a teacher of the same weights, by the first numbers of each.

    Weights that are read from files, each rank its own shards, are not looked at.

    Args:
        teacher: The teacher, as this rank was given it.
        ranks: The ranks.

    Raises:
        ValueError: If they differ, on all ranks.
    """
    digest = hashlib.sha256()
    for parameter in teacher.parameters():
        if not parameter.is_meta:
            first = parameter.detach().flatten()[:8].float().cpu()
            digest.update(first.numpy().tobytes())
    number = int.from_bytes(digest.digest()[:7], "big")
    if ranks.highest(number) != -ranks.highest(-number):
        raise ValueError(
            "the ranks have teachers of different weights; load them from one file, or draw them "
            "from one seed: a runtime of several ranks seeds torch in another way on each, so "
            "build a random network before the runtime, or seed torch after it"
        )


def check_fake_scores(plan: PhasePlan, rollouts: Rollouts, scores: FakeScores) -> None:
    """Checks that every fake score is trained.

    Raises:
        ValueError: If rollouts have no exit step, so that only one fake score would train.
    """
    for phase in plan:
        exit_step = rollouts.truncation(phase, torch.Generator().manual_seed(0))
        if exit_step is None and scores.number(phase) > 1:
            raise ValueError(
                f"{rollouts.truncation} takes every step of phase {phase.index + 1}, so {scores} "
                "would leave all fake scores but one untrained; use OneFakeScore()"
            )


def check_times(teacher: Denoiser, plan: PhasePlan, objective: Objective) -> None:
    """Checks, without an evaluation, that a teacher can be evaluated wherever a plan does.

    Args:
        teacher: The teacher.
        plan: The phases.
        objective: The experts' objective; its time bounds are checked.

    Raises:
        ValueError: If the plan leaves the teacher's time range, or no step can be taken from its
            kind of prediction.
    """
    low, high = teacher.time_range
    x = torch.ones(1, 1)
    for phase in plan:
        for t in _times(phase, objective):
            if not low <= t <= high:
                remedy = "move the plan or the time margin into the range"
                if t == 1:  # the start of every plan
                    remedy = (
                        "use a schedule that ends where the teacher does, with "
                        "WithSchedule.reach(teacher, schedule) or --teacher.schedule-end teacher"
                    )
                raise ValueError(
                    f"phase {phase.index + 1} evaluates the teacher at t = {t:.4g}, outside its "
                    f"range [{low:.4g}, {high:.4g}]; {remedy}"
                )
            if t not in phase.timesteps:
                continue
            at = torch.tensor(t, dtype=torch.float64)
            prediction = Prediction(
                value=x, kind=teacher.kind, x_t=2 * x, t=at, schedule=teacher.schedule
            )
            if not bool(ode_step(prediction, phase.t_end).isfinite().all()):
                raise ValueError(
                    f"no step can be taken from a prediction of {teacher.kind} at t = {t:.4g}, "
                    "where the schedule leaves no signal; predict x0, velocity or v_prediction, "
                    "or use a schedule with signal left at t = 1"
                )


def check_buckets(
    teacher: Denoiser,
    plan: PhasePlan,
    buckets: Buckets,
    generator_objective: Objective,
    fake_objective: Objective,
) -> None:
    """Checks, without an evaluation, that samples of several sizes can be distilled.

    Args:
        teacher: The teacher.
        plan: The phases.
        buckets: The sizes.
        generator_objective: The experts' objective.
        fake_objective: The fake score's objective.

    Raises:
        ValueError: If a bucket has another number of channels or dimensions than the teacher's
            latents, its times leave the teacher's time range, or a term of the objectives needs
            samples of one size.
    """
    own = teacher.latent_shape
    for bucket in buckets:
        if len(bucket.latent_shape) != len(own) or bucket.latent_shape[0] != own[0]:
            raise ValueError(
                f"bucket {bucket} does not fit the teacher, whose latents are "
                f"{' x '.join(map(str, own))}: the number of dimensions and channels is fixed"
            )
        check_times(teacher, bucket.plan(plan), generator_objective)
    if len(buckets) > 1:
        for term in (*terms_of(generator_objective), *terms_of(fake_objective)):
            if isinstance(term, DiscriminatorLoss):
                raise ValueError(
                    f"{term.name!r} compares the student with real samples of one size, and there "
                    f"are {len(buckets)} buckets; leave the term out, or distill one size"
                )


@torch.no_grad()
def check_teacher(
    teacher: Denoiser,
    plan: PhasePlan,
    objective: Objective,
    condition: Conditions | None,
    buckets: Buckets | None = None,
) -> None:
    """Evaluates a teacher on a few rows, where it is placed.

    Two rows at the highest time of the plan, one at the lowest, one for each network of a
    routed teacher that serves neither, and one of every other bucket.

    Args:
        teacher: The teacher.
        plan: The phases.
        objective: The experts' objective; its time bounds are checked.
        condition: Encoded prompts, of which the first two are used, or ``None``.
        buckets: The sizes of samples; the teacher's own by default.

    Raises:
        ValueError: As :func:`check_times`, or if a prediction has the wrong shape or is not
            finite, or the network modifies its inputs, or the teacher cannot be evaluated in a
            bucket, such as for a number of tokens that the context parallel ranks cannot share.
    """
    check_times(teacher, plan, objective)
    generator = torch.Generator().manual_seed(0)
    rows = None if condition is None else condition[:2].to(teacher.device)
    n = 2 if rows is None else int(rows.batch_size[0])
    noise = randn((n, *teacher.latent_shape), generator, device=teacher.device)
    times = {t for phase in plan for t in _times(phase, objective)}
    for i, t in enumerate(_covering(teacher, times)):
        x, some = (noise, rows) if i == 0 else (noise[:1], None if rows is None else rows[:1])
        _check_output(teacher, x, t, some)
    for bucket in buckets or ():
        if bucket.latent_shape == teacher.latent_shape:
            continue
        noise = randn((1, *bucket.latent_shape), generator, device=teacher.device)
        try:
            _check_output(teacher, noise, 1.0, None if rows is None else rows[:1])
        except (ValueError, RuntimeError, IndexError) as error:
            raise ValueError(
                f"the teacher cannot be evaluated in bucket {bucket} ({error}); leave the bucket "
                "out, or change its size"
            ) from error


def _check_output(teacher: Denoiser, x: Latents, t: float, condition: Condition) -> None:
    times = within(torch.full((len(x),), t, dtype=torch.float64, device=x.device), t, t)
    try:
        with inputs_kept(x, times, condition):
            value = teacher(x, times, condition).value
    except (AttributeError, IndexError, KeyError) as error:
        where = _evaluated(teacher, x, t, condition)
        raise ValueError(f"{where} ({describe_error(error)})") from error
    except RuntimeError as error:
        error.add_note(_evaluated(teacher, x, t, condition))
        raise
    if value.shape != x.shape:
        raise ValueError(
            f"the teacher returned shape {tuple(value.shape)} for latents of shape "
            f"{tuple(x.shape)}; its network must return the shape of its input"
        )
    if value.itemsize > x.itemsize:  # steps have the wider type
        check_own_type(teacher, value, t, condition)
    if not bool(value.isfinite().all()):
        raise ValueError(
            f"the teacher's output at t = {t:.4g} is not finite; check its weights and time range"
        )


def check_own_type(teacher: Denoiser, value: Latents, t: float, condition: Condition) -> None:
    """Checks that a teacher takes latents of the type that it returned.

    Args:
        teacher: The teacher.
        value: What it returned, with shape :math:`(B, *)`.
        t: A time.
        condition: A condition of batch size :math:`(B)`, or ``None``.

    Raises:
        ValueError: If it does not.
    """
    try:
        teacher(value, t, condition)
    except RuntimeError as error:
        raise ValueError(
            f"the network returned {value.dtype}, and does not take latents of this type, which "
            f"its steps have ({describe_error(error)}); return value.to(x_t.dtype), or convert "
            "its times, which are float64, by t.to(x_t)"
        ) from error


def _evaluated(teacher: Denoiser, x: Latents, t: float, condition: Condition) -> str:
    fields = "no condition"
    if condition is not None:
        shapes = {str(key): tuple(value.shape) for key, value in condition.items()}
        fields = f"a condition of shapes {shapes}"
    return (
        f"the teacher cannot be evaluated at t = {t:.4g} on latents of shape {tuple(x.shape)} "
        f"with {fields}; look at its network and at what its encode returns"
    )


def _times(phase: Phase, objective: Objective) -> tuple[float, ...]:
    return (*phase.timesteps, *(objective.time_bounds(phase) or ()))


def _covering(teacher: Denoiser, times: Collection[float]) -> list[float]:
    """Returns the highest and the lowest time, and one for each further routed network."""
    chosen = [max(times)] if len(times) == 1 else [max(times), min(times)]
    for module in teacher.modules():
        if isinstance(module, RoutedDenoiser):
            served = {int(module.router(t)) for t in chosen}
            for t in sorted(times, reverse=True):
                if int(module.router(t)) not in served:
                    served.add(int(module.router(t)))
                    chosen.append(t)
    return chosen
