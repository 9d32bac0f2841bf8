"""Distillation: from a teacher and a plan to a student, one phase after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pdmd.distillation.finished import FinishedExperts
from pdmd.distillation.phases import PhasePlan
from pdmd.distillation.students import Student
from pdmd.distillation.validation import (
    check_fake_scores,
    check_objectives,
    check_teacher,
    encode,
    updates_of,
)
from pdmd.objectives.base import Objective
from pdmd.objectives.distribution_matching import DistributionMatching
from pdmd.objectives.score_matching import SubintervalScoreMatching
from pdmd.teachers.base import Teacher
from pdmd.training.checkpoints.training_state import load_generator, load_trainer, save_training
from pdmd.training.conditions import ConditionStream
from pdmd.training.expert_training import ExpertTraining
from pdmd.training.fake_scores import FakeScoreTraining
from pdmd.training.loop import calibrate, train_phase
from pdmd.training.rollouts import Rollouts
from pdmd.training.session import Session
from pdmd.training.trainer import PhaseTrainer

__all__ = ["distill"]


def distill(
    teacher: Teacher,
    plan: PhasePlan,
    prompts: Sequence[Any] | None = None,
    *,
    updates: int | Sequence[int] = 500,
    generator_objective: Objective | None = None,
    fake_objective: Objective | None = None,
    experts: ExpertTraining | None = None,
    rollouts: Rollouts | None = None,
    fake_scores: FakeScoreTraining | None = None,
    session: Session | None = None,
    seed: int = 0,
    source: Mapping[str, Any] | None = None,
) -> Student:
    """Distills a teacher into a few-step mixture of experts.

    The phases are trained from noise to data. In each, an expert carries the samples of the
    frozen experts before it to the end of the phase; its fake score learns the distribution of
    what the expert generates, and the expert follows the difference of real and fake score.

    **Main arguments**

    Args:
        teacher: The teacher; wrap it in :class:`~pdmd.teachers.Guided` for guidance.
        plan: The phases.
        prompts: Prompts to sample from; the teacher's own by default.
        updates: Updates of each expert: one number for all, or one per phase.
        generator_objective: What the experts minimise; distribution matching by default.
        fake_objective: What the fake scores minimise; subinterval score matching by default.

    **Other arguments**

    Args:
        experts: How experts are initialized, optimized and averaged, and which train together.
        rollouts: Batch size, truncation, and where rollouts start.
        fake_scores: How many fake scores a phase has, and how often they train.
        session: The device and ranks, the recorder, checkpoints and the account of evaluations.
        seed: Seed of all randomness, in [0, 2^63); the same seed gives the same bits on the same
            machine.
        source: Passed on to the student; see :class:`~pdmd.distillation.students.Student`.

    Returns:
        The student, frozen, its networks plain ones on the CPU.

    Raises:
        ValueError: If a setting is out of its range, the plan leaves the teacher's time range, or
            the teacher's output is not finite.
        NonFiniteError: If losses or gradients are not finite in too many updates in a row.
        Interrupted: If the checkpointer was requested to stop; its checkpoint is written.

    References:
        Fan et al., Phased DMD, arXiv:2510.27684, Algorithm 1.
    """
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed is in [0, 2^63), got {seed}")
    generator_objective = generator_objective or DistributionMatching()
    fake_objective = fake_objective or SubintervalScoreMatching()
    experts, rollouts = experts or ExpertTraining(), rollouts or Rollouts()
    fake_scores, session = fake_scores or FakeScoreTraining(), session or Session()
    runtime, checkpointer = session.runtime, session.checkpointer
    per_phase, health = updates_of(plan, updates), session.health()
    encoded = encode(teacher, prompts)
    check_objectives(plan, generator_objective, fake_objective)
    check_fake_scores(plan, rollouts, fake_scores.scores)
    runtime.ranks.local_batch(rollouts.batch_size)
    runtime.placement.check(teacher)
    conditions = ConditionStream(None if encoded is None else encoded.to(runtime.device))
    generator = runtime.ranks.generator(seed)
    finished = FinishedExperts(teacher, experts, runtime)

    with session.freezing(teacher):
        cursor = checkpointer.read() if session.resume else {"finished": 0, "update": None}
        real = runtime.placement.frozen(teacher, shared=experts.initializer.adapts)
        check_teacher(real, plan, generator_objective, encoded)
        if session.resume:
            session.account.restore(cursor["account"])
            rollouts.phase_inputs.restore(cursor["phase_inputs"])
            session.recorder.on_resume(cursor["finished"] + 1, cursor["update"] or 0)

        for group in experts.curriculum.groups(plan):
            if group[0].index < cursor["finished"]:
                finished.restore(group, checkpointer)
                continue
            trainer = PhaseTrainer(
                experts=finished.initialize(group),
                earlier=finished.placed,
                teacher=real,
                fakes=[
                    [
                        experts.initializer.fake(teacher, phase)
                        for _ in range(fake_scores.scores.number(phase))
                    ]
                    for phase in group
                ],
                generator_objective=generator_objective,
                fake_objective=fake_objective,
                conditions=conditions,
                updates=sum(per_phase[phase.index] for phase in group),
                generator=generator,
                expert_training=experts,
                rollouts=rollouts,
                fake_training=fake_scores,
                session=session,
                health=health,
                seed=seed,
            )
            if session.resume and group[0].index == cursor["finished"]:
                if cursor["update"] is not None:
                    load_trainer(trainer, cursor)
                    session.account.restore(cursor["account"])  # what is repeated counts once
                load_generator(checkpointer, generator)
            train_phase(trainer, len(plan), finished.experts)
            session.account.close()
            calibrate(trainer)
            finished.gather(group, trainer.finished())
            del trainer  # before the next phase's networks are built
            save_training(session, finished.experts, generator, rollouts.phase_inputs)
        checkpointer.wait()

    known = teacher.prompts if prompts is None else prompts
    student = Student(finished.release(), encode=teacher.encode, prompts=known, source=source)
    return student.eval().requires_grad_(False)
