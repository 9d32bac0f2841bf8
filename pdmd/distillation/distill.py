"""Distillation of a teacher into a student, phase by phase."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import Any

from pdmd.arguments import checked
from pdmd.diffusion.modes import check_gradients_on
from pdmd.distillation.buckets import Buckets
from pdmd.distillation.finished import FinishedExperts
from pdmd.distillation.notices import objective_notice, plan_notice, prompt_notice, score_notice
from pdmd.distillation.phases import PhasePlan
from pdmd.distillation.student_sources import check_source
from pdmd.distillation.students import Student
from pdmd.distillation.validation import (
    check_buckets,
    check_discriminators,
    check_fake_scores,
    check_objectives,
    check_same_weights,
    check_teacher,
    encode,
    updates_of,
)
from pdmd.objectives.base import Objective
from pdmd.objectives.distribution_matching import DistributionMatching
from pdmd.objectives.score_matching import SubintervalScoreMatching
from pdmd.teachers.base import Teacher
from pdmd.training.checkpoints.global_generators import load_global_states
from pdmd.training.checkpoints.inputs import digest_prompts
from pdmd.training.checkpoints.training_state import (
    check_phases,
    load_generator,
    load_trainer,
    save_training,
)
from pdmd.training.conditions import ConditionStream
from pdmd.training.expert_training import ExpertTraining
from pdmd.training.fake_scores import FakeScoreTraining
from pdmd.training.loop import calibrate, train_phase
from pdmd.training.rollouts import Rollouts
from pdmd.training.session import Session
from pdmd.training.trainer import PhaseTrainer
from pdmd.typing import Conditions

__all__ = ["distill"]


@checked
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
    conditions: Conditions | None = None,
    seed: int = 0,
    source: Mapping[str, Any] | None = None,
    progress: bool = True,
    check_score: bool = True,
) -> Student:
    """Distills a teacher into a few-step mixture of experts.

    Phases are trained from noise to data. In phase k, expert k maps the samples of the frozen
    earlier experts to the end of the phase; the fake score learns the score of expert k's samples,
    and the expert descends along the difference of fake and real score.

    **Main arguments**

    Args:
        teacher: The teacher; wrap it in :class:`~pdmd.teachers.Guided` for guidance.
        plan: The phases.
        prompts: Prompts to sample from; those of the teacher by default.
        updates: Updates of each expert: one number for all, or one per phase.
        generator_objective: Objective of the experts; distribution matching by default.
        fake_objective: Objective of the fake scores; subinterval score matching by default.

    **Other arguments**

    Args:
        experts: Initialization, optimization, averaging and curriculum of the experts.
        rollouts: Batch size, sizes of samples, truncation and phase inputs of rollouts.
        fake_scores: Number and training of the fake scores.
        session: Device and ranks, recorder, checkpoints and NFE account.
        conditions: The prompts, if the teacher has encoded them already, in their order.
        seed: Seed of all randomness, in [0, 2^63); the same seed gives the same bits on the same
            machine.
        source: The ``source`` of the :class:`~pdmd.distillation.students.Student`.
        progress: Whether to show a progress bar of each phase, unless the session has a recorder.
        check_score: Whether to look first whether the teacher is the score of its own samples, by
            11 evaluations of 8 rows (:mod:`pdmd.training.monitoring.self_calibration`), and to
            say so in one line if it is not. It changes no random numbers of the training.

    Returns:
        The student, frozen. In one process, over plain networks on the CPU; on several ranks, over
        networks that stay sharded, so that all ranks sample, evaluate and save it together.

    Raises:
        ValueError: If a setting is out of its range, gradients are off, the plan leaves the
            teacher's time range, the teacher's output is not finite, ranks have teachers of
            different weights, or a run that does not resume has a folder with checkpoints.
        NonFiniteError: If too many updates in a row were skipped for losses or gradients that are
            not finite.
        Interrupted: If a stop was requested, after writing a checkpoint.

    References:
        Fan et al., Phased DMD, arXiv:2510.27684, Algorithm 1.
    """
    check_gradients_on("distill")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be in [0, 2^63), got {seed}")
    generator_objective = generator_objective or DistributionMatching()
    fake_objective = fake_objective or SubintervalScoreMatching()
    experts, rollouts = experts or ExpertTraining(), rollouts or Rollouts()
    fake_scores, session = fake_scores or FakeScoreTraining(), session or Session()
    runtime, checkpointer = session.runtime, session.checkpointer
    session = session.with_progress() if progress else session
    session.check_new()
    check_source(source)
    per_phase, health = updates_of(plan, updates), session.health()
    listed = teacher.prompts if prompts is None else prompts
    encoded = encode(teacher, prompts) if conditions is None else conditions
    if conditions is not None and conditions.batch_size[0] != len(listed):
        raise ValueError(
            f"got conditions of {conditions.batch_size[0]} prompts for {len(listed)} prompts; "
            "pass the prompts that they encode, in the same order"
        )
    check_objectives(plan, generator_objective, fake_objective)
    check_fake_scores(plan, rollouts, fake_scores.scores)
    experts.check(plan)
    runtime.types.check(ema=experts.ema, adapted=experts.initializer.adapted_roles)
    fake_scores.check(plan, experts.curriculum)
    check_discriminators(fake_objective, teacher, runtime.placement)
    buckets = rollouts.buckets or Buckets.of_shape(teacher.latent_shape)
    check_buckets(teacher, plan, buckets, generator_objective, fake_objective)
    runtime.ranks.local_batch(rollouts.batch_size)
    runtime.placement.check(teacher)
    check_same_weights(teacher, runtime.ranks)
    stream = ConditionStream(None if encoded is None else encoded.to(runtime.device))
    generator = runtime.ranks.generator(seed)
    start = runtime.placement.outline(teacher)
    finished = FinishedExperts(start, experts, runtime)
    checkpointer.add_inputs({"prompts": digest_prompts(listed)})
    rollouts.phase_inputs.on_distillation_start()

    with session.freezing(teacher):
        cursor = checkpointer.read() if session.resume else {"finished": 0, "update": None}
        real = runtime.placement.frozen(
            start,
            shared=experts.initializer.adapts,
            offload=runtime.offload.teacher,
            precision=runtime.types.teacher,
        )
        check_teacher(real, plan, generator_objective, encoded, buckets)
        found = [
            prompt_notice(teacher, listed),
            plan_notice(teacher, plan),
            objective_notice(fake_objective),
        ]
        if check_score and not session.resume:
            batch = runtime.ranks.local_batch(rollouts.batch_size)
            found.append(score_notice(teacher, real, stream, session, batch))
        for notice in filter(None, found):
            session.recorder.on_notice(notice)
        if session.resume:
            check_phases(plan, cursor)
            session.account.restore(cursor["account"])
            rollouts.phase_inputs.restore(cursor["phase_inputs"])
            session.recorder.on_resume(cursor["finished"] + 1, cursor["update"] or 0)

        for group in experts.curriculum.groups(plan):
            if group[0].index < cursor["finished"]:
                finished.restore(group, checkpointer)
                continue
            resumed = session.resume and group[0].index == cursor["finished"]
            if resumed:  # what follows may draw from them
                load_global_states(checkpointer, cursor, runtime.device)
            trainer = PhaseTrainer(
                experts=finished.initialize(group),
                earlier=tuple(finished.experts),
                teacher=real,
                fakes=[
                    [
                        experts.initializer.fake(start, phase)
                        for _ in range(fake_scores.scores.number(phase))
                    ]
                    for phase in group
                ],
                generator_objective=generator_objective,
                fake_objective=fake_objective,
                conditions=stream,
                updates=sum(per_phase[phase.index] for phase in group),
                generator=generator,
                expert_training=experts,
                rollouts=rollouts,
                fake_training=fake_scores,
                session=session,
                health=health,
                seed=seed,
            )
            if resumed:
                if cursor["update"] is not None:
                    load_trainer(trainer, cursor)
                    load_global_states(checkpointer, cursor, runtime.device)
                    session.account.restore(cursor["account"])  # repeated updates count once
                load_generator(checkpointer, generator)
            train_phase(trainer, len(plan), finished.experts)
            session.account.close()
            calibrate(trainer)
            finished.gather(group, trainer.finished())
            del trainer  # before the next phase's networks are built
            gc.collect()  # sharded modules refer to themselves
            if group[-1].index + 1 < len(plan):  # else the trainer's is the last, to train longer
                save_training(session, finished.experts, generator, rollouts.phase_inputs)
                session.report_checkpoints()
        checkpointer.wait()
        session.report_checkpoints()

    student = Student(
        finished.release(),
        encode=teacher.encode,
        prompts=listed,
        source=source,
        buckets=rollouts.buckets,
    )
    del real, finished
    gc.collect()  # a sharded teacher refers to itself
    return student.eval().requires_grad_(False)
