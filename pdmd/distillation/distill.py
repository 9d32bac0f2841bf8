"""Distillation: from a teacher and a plan to a student, one phase after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.solvers import ode_step
from pdmd.distillation.adapters import adapted_parts
from pdmd.distillation.experts import Expert, OdeExpert, StochasticTruncation, Truncation
from pdmd.distillation.initializers import FromTeacher, Initializer
from pdmd.distillation.phases import Phase, PhasePlan
from pdmd.distillation.students import Student
from pdmd.distributed.runtime import OneProcess, Runtime
from pdmd.objectives.base import Objective
from pdmd.objectives.distribution_matching import DistributionMatching
from pdmd.objectives.score_matching import SubintervalScoreMatching
from pdmd.randomness import randn
from pdmd.teachers.base import Teacher
from pdmd.training.checkpoints.checkpointer import Checkpointer
from pdmd.training.conditions import ConditionStream
from pdmd.training.curriculum import Curriculum, Progressive
from pdmd.training.fake_scores import FakeScores, FakeUpdates, FixedUpdates, OneFakeScore
from pdmd.training.loop import calibrate, train_phase
from pdmd.training.monitoring.accounting import Account
from pdmd.training.monitoring.health import Health, NonFiniteError
from pdmd.training.monitoring.recorder import Recorder
from pdmd.training.optimizers import AdamRecipe
from pdmd.training.phase_inputs import FreshPhaseInputs, PhaseInputs
from pdmd.training.trainer import PhaseTrainer
from pdmd.typing import Conditions

__all__ = ["check_teacher", "distill"]


@torch.no_grad()
def check_teacher(
    teacher: Denoiser,
    plan: PhasePlan,
    objective: Objective,
    condition: Conditions | None,
) -> None:
    """Asks the teacher once at every end of the plan, before any work.

    Args:
        teacher: The teacher.
        plan: The phases.
        objective: What the experts minimise, for the times at which it asks the teacher.
        condition: Encoded prompts, of which the first two are asked, or ``None``.

    Raises:
        ValueError: If the plan leaves the teacher's time range, or an answer has the wrong shape
            or is not finite.
    """
    low, high = teacher.time_range
    generator = torch.Generator().manual_seed(0)
    rows = None if condition is None else condition[:2].to(teacher.device)
    n = 2 if rows is None else int(rows.batch_size[0])
    x = randn((n, *teacher.latent_shape), generator, device=teacher.device)
    for phase in plan:
        asked = objective.time_bounds(phase)
        for t in (*phase.timesteps, *(asked or ())):
            if not low <= t <= high:
                remedy = "move the plan or the time margin into the range"
                if t == 1:  # where every plan starts
                    remedy = (
                        "take a schedule that ends where the teacher does, with "
                        "WithSchedule.reach(teacher, schedule) or --teacher.schedule-end teacher"
                    )
                raise ValueError(
                    f"phase {phase.index + 1} asks the teacher at t = {t:.4g}, outside its range "
                    f"[{low:.4g}, {high:.4g}]; {remedy}"
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
            if t in phase.timesteps and not bool(
                ode_step(prediction, phase.t_end).isfinite().all()
            ):
                raise ValueError(
                    f"no step can be made from a prediction of {teacher.kind} at t = {t:.4g}, "
                    "where the schedule leaves no signal; predict x0, velocity or v_prediction, "
                    "or use a schedule with signal left at t = 1"
                )


def distill(
    teacher: Teacher,
    plan: PhasePlan,
    prompts: Sequence[Any] | None = None,
    *,
    generator: Objective | None = None,
    fake_score: Objective | None = None,
    init: Initializer | None = None,
    expert: type[Expert] = OdeExpert,
    truncation: Truncation | None = None,
    curriculum: Curriculum | None = None,
    fake_scores: FakeScores | None = None,
    updates: int | Sequence[int] = 500,
    fake_updates: int | FakeUpdates = 5,
    batch_size: int = 128,
    accumulate: int = 1,
    fake_updates_per_rollout: int = 1,
    phase_inputs: PhaseInputs | None = None,
    optimizer: AdamRecipe | None = None,
    fake_optimizer: AdamRecipe | None = None,
    ema: float = 0.99,
    max_grad_norm: float = 10.0,
    seed: int = 0,
    max_consecutive_skips: int = 3,
    runtime: Runtime | None = None,
    recorder: Recorder | None = None,
    checkpointer: Checkpointer | None = None,
    resume: bool = False,
    account: Account | None = None,
    source: Mapping[str, Any] | None = None,
) -> Student:
    """Distills a teacher into a few-step mixture of experts.

    Args:
        teacher: What to distill; wrap it in :class:`~pdmd.teachers.Guided` for guidance.
        plan: The phases.
        prompts: Prompts to draw from; the teacher's own by default.
        generator: What experts minimise; distribution matching by default.
        fake_score: What fake scores minimise; subinterval score matching by default.
        init: Where a phase's networks start; at the teacher by default.
        expert: How an expert walks through its phase.
        truncation: Where a rollout stops inside a phase; at a random step by default.
        curriculum: Which phases train together; one after the other by default.
        fake_scores: How many fake scores a phase has; one by default.
        updates: Updates of each expert: one number for all, or one per phase.
        fake_updates: Updates of the fake score before each of the expert's (TTUR): their number,
            or what decides it.
        batch_size: Samples in each rollout, on all ranks together.
        accumulate: Rollouts whose gradients make one update of the expert, one after the other:
            less noise at the same memory.
        fake_updates_per_rollout: Fake updates that one rollout serves, with fresh times and
            noises; above 1 the generator's own rollout serves the first of them. Fewer
            evaluations, samples that are seen more often.
        phase_inputs: Where rollouts start; every one at a state of its own by default. An
            :class:`~pdmd.training.phase_inputs.PhaseInputBuffer` keeps states and uses them
            several times.
        optimizer: The experts' optimizer.
        fake_optimizer: The fake scores'; by default the expert's at twice its rate.
        ema: Decay of the weight average that becomes the expert.
        max_grad_norm: Largest gradient norm.
        seed: Seed of every draw; the same seed gives the same bits on the same machine.
        max_consecutive_skips: Updates that may be refused in a row, for a loss or gradient that
            is not finite, before the run stops.
        runtime: Where it runs; this process, on the CPU, by default. Ranks call this function
            together, with the same arguments.
        recorder: Hears of progress.
        checkpointer: Writes checkpoints, and may be asked to stop the run.
        resume: Whether to go on from the checkpointer's newest checkpoint.
        account: Counts network evaluations, by role.
        source: Passed on to the student; see :class:`~pdmd.distillation.students.Student`.

    Returns:
        The student, frozen, its networks plain ones on the CPU.

    Raises:
        ValueError: If a setting is out of its range, the plan leaves the teacher's time range, or
            the teacher's output is not finite.
        NonFiniteError: If losses or gradients are not finite, more than ``max_consecutive_skips``
            in a row.
        Interrupted: If the checkpointer was asked to stop; its checkpoint is written.

    References:
        Fan et al., Phased DMD, arXiv:2510.27684, Algorithm 1.
    """
    per_phase = [updates] * len(plan) if isinstance(updates, int) else list(updates)
    if len(per_phase) != len(plan):
        raise ValueError(f"got updates for {len(per_phase)} phases, but the plan has {len(plan)}")
    for name, value, least in (
        ("updates", min(per_phase), 1),
        ("batch_size", batch_size, 1),
        ("accumulate", accumulate, 1),
        ("fake_updates_per_rollout", fake_updates_per_rollout, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed is in [0, 2^63), got {seed}")
    if not max_grad_norm > 0:
        raise ValueError(f"max_grad_norm must be positive, got {max_grad_norm}")
    generator = generator or DistributionMatching()
    fake_score = fake_score or SubintervalScoreMatching()
    init, curriculum = init or FromTeacher(), curriculum or Progressive()
    truncation, fake_scores = truncation or StochasticTruncation(), fake_scores or OneFakeScore()
    optimizer = optimizer or AdamRecipe()
    fake_optimizer = fake_optimizer or AdamRecipe(lr=2 * optimizer.lr, decay_from=1.0)
    if isinstance(fake_updates, int):
        fake_updates = FixedUpdates(fake_updates)
    phase_inputs = phase_inputs or FreshPhaseInputs()
    recorder, account = recorder or Recorder(), account or Account()
    if isinstance(prompts, str):
        raise ValueError(
            f"prompts are a sequence of prompts, got the text {prompts!r}; pass a list"
        )
    encoded = teacher.conditions(teacher.prompts if prompts is None else prompts)
    for role, objective in (("generator", generator), ("fake score", fake_score)):
        for index in sorted(set(range(len(plan))) - objective.covers(plan)):
            raise ValueError(
                f"the {role}'s objective has no loss in phase {index + 1}; give it a term that "
                "counts in every phase"
            )
    for phase in plan:
        fake_score.time_bounds(phase)  # for its errors, before any work
        exit_step = truncation(phase, torch.Generator().manual_seed(0))
        if exit_step is None and fake_scores.number(phase) > 1:
            raise ValueError(
                f"{truncation} takes every step of phase {phase.index + 1}, so {fake_scores} "
                "would leave all its fake scores but one untrained; use OneFakeScore()"
            )
    runtime, health = runtime or OneProcess(), Health(max_consecutive_skips)
    runtime.local(batch_size)
    runtime.check(teacher)
    conditions = ConditionStream(None if encoded is None else encoded.to(runtime.device))
    trainable = {id(p) for p in teacher.parameters() if p.requires_grad}
    teacher.requires_grad_(False).eval()
    rng = runtime.generator(seed)

    cursor: dict[str, Any] = {"finished": 0, "update": None}
    if resume:
        if checkpointer is None:
            raise ValueError("resume=True needs a checkpointer to resume from")
        cursor = checkpointer.read()
    finished: list[Expert] = []  # over plain networks
    placed: list[Expert] = []  # the same, as the runtime runs them
    real = runtime.frozen(teacher, shared=init.adapts)
    try:
        check_teacher(real, plan, generator, encoded)
        if resume and checkpointer is not None:
            account.restore(cursor["account"])
            phase_inputs.restore(cursor.get("phase_inputs", {}))
            for group in curriculum.groups(plan):
                if group[0].index >= cursor["finished"]:
                    continue
                made = _start(init, teacher, group, finished, expert, curriculum.shared)
                for one in made:
                    checkpointer.load_network(f"finished.{one.phase.index}", one.denoiser)
                finished += [_freeze(one) for one in made]
                placed += _placed(made, runtime)
            recorder.on_resume(cursor["finished"] + 1, cursor["update"] or 0)
        for group in curriculum.groups(plan):
            if group[0].index < cursor["finished"]:
                continue
            trainer = PhaseTrainer(
                experts=_start(init, teacher, group, finished, expert, curriculum.shared),
                earlier=placed,
                teacher=real,
                fakes=[
                    [init.fake(teacher, phase) for _ in range(fake_scores.number(phase))]
                    for phase in group
                ],
                generator_objective=generator,
                fake_objective=fake_score,
                conditions=conditions,
                truncation=truncation,
                updates=sum(per_phase[phase.index] for phase in group),
                fake_scores=fake_scores,
                fake_updates=fake_updates,
                batch_size=batch_size,
                accumulate=accumulate,
                fake_updates_per_rollout=fake_updates_per_rollout,
                optimizer=optimizer,
                fake_optimizer=fake_optimizer,
                ema_decay=ema,
                max_grad_norm=max_grad_norm,
                generator=rng,
                seed=seed,
                account=account,
                runtime=runtime,
                health=health,
                phase_inputs=phase_inputs,
                interval=recorder.interval,
            )
            if resume and checkpointer is not None and group[0].index == cursor["finished"]:
                if cursor["update"] is not None:
                    checkpointer.load_trainer(trainer, cursor)
                    account.restore(cursor["account"])  # what begins again is not counted twice
                checkpointer.load_generator(rng)
            train_phase(trainer, len(plan), finished, recorder, checkpointer)
            account.close()
            calibrate(trainer, recorder)
            done = [_freeze(e) for e in trainer.finished()]
            if runtime.plain:
                finished += done
            else:
                made = _start(init, teacher, group, finished, expert, curriculum.shared)
                for one, whole in zip(made, done, strict=True):
                    one.denoiser.load_state_dict(runtime.whole(whole.denoiser))
                finished += [_freeze(one) for one in made]
            placed += done
            del trainer  # before the next phase's networks are made
            if checkpointer is not None:
                checkpointer.save(finished, None, rng, account, phase_inputs)
        if checkpointer is not None:
            checkpointer.store.wait()
    except NonFiniteError as error:
        if checkpointer is None:
            raise
        last = checkpointer.store.latest()
        where = f"the last good checkpoint is {last}" if last else "no checkpoint was written"
        raise NonFiniteError(f"{error} ({where})") from error
    finally:
        account.close()
        recorder.close()
        runtime.release(teacher)
        for parameter in teacher.parameters():
            parameter.requires_grad_(id(parameter) in trainable)
    for done in finished:
        runtime.release(done)
        for part in adapted_parts(done):  # over the teacher, which may train again elsewhere
            part.base.requires_grad_(False)
    known = teacher.prompts if prompts is None else prompts
    student = Student(finished, encode=teacher.encode, prompts=known, source=source)
    return student.eval().requires_grad_(False)


def _start(
    init: Initializer,
    teacher: Denoiser,
    group: Sequence[Phase],
    finished: Sequence[Expert],
    expert: type[Expert],
    shared: bool,
) -> list[Expert]:
    if shared:
        span = Phase(
            index=group[0].index,
            timesteps=tuple(t for phase in group for t in phase.timesteps),
            t_end=group[-1].t_end,
            score_range=(
                min(phase.score_range[0] for phase in group),
                max(phase.score_range[1] for phase in group),
            ),
        )
        denoiser = init.expert(teacher, span, finished)
        return [expert(denoiser, phase) for phase in group]
    return [expert(init.expert(teacher, phase, finished), phase) for phase in group]


def _placed(made: Sequence[Expert], runtime: Runtime) -> list[Expert]:
    """Returns experts as the runtime runs them; what they share they share still."""
    networks = {id(one.denoiser): one.denoiser for one in made}
    frozen = {key: runtime.frozen(denoiser) for key, denoiser in networks.items()}
    return [_freeze(type(one)(frozen[id(one.denoiser)], one.phase)) for one in made]


def _freeze(expert: Expert) -> Expert:
    return expert.eval().requires_grad_(False)
