"""Runs: one distillation from a configuration to a folder.

A run folder contains ``config.toml`` (the resolved configuration), ``plan.json``,
``history.jsonl`` and ``tensorboard/`` (scalars), ``calibration.json``, ``student/``,
``metrics.json``, ``summary.json``, ``grids/``, ``report.html`` and ``checkpoint/``, of which the
last one stays when the run is finished, to be trained longer from.
"""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pdmd.cli.config import DistillConfig
from pdmd.cli.config_files import same_config, write_config
from pdmd.cli.final_evaluation import FinalEvaluation
from pdmd.cli.resumed_settings import describe_changes, fingerprint
from pdmd.cli.run_checkpoints import build_checkpointer, leave_checkpoints
from pdmd.cli.run_folders import (
    BEFORE,
    check_folder,
    check_writable,
    clear_folder,
    mark_finished,
    write_plan,
)
from pdmd.cli.run_inputs import digest_images, digest_inputs
from pdmd.cli.run_locks import RunLocks
from pdmd.cli.run_monitors import build_monitors, build_recorder
from pdmd.cli.run_starts import RunStart, has_weights
from pdmd.cli.stop_signals import stop_on
from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.sampling import ode_times
from pdmd.distillation.distill import distill
from pdmd.distillation.experts import experts
from pdmd.distillation.students import Student
from pdmd.distillation.validation import (
    check_buckets,
    check_discriminators,
    check_fake_scores,
    check_objectives,
    check_teacher,
    encode,
)
from pdmd.distributed.runtime import Runtime
from pdmd.extras import require
from pdmd.files import is_url, local_path, write_file
from pdmd.training.checkpoints.checkpointer import Interrupted
from pdmd.training.checkpoints.inputs import digest_prompts
from pdmd.training.expert_training import ExpertTraining
from pdmd.training.fake_scores import FakeScoreTraining
from pdmd.training.monitoring.accounting import Account
from pdmd.training.monitoring.outputs import say
from pdmd.training.monitoring.recorder import notify
from pdmd.training.rollouts import Rollouts
from pdmd.training.session import Session

__all__ = ["Run"]


class Run:
    """One distillation and its folder.

    The constructor validates the configuration, the teacher and the folder; nothing is written
    before :meth:`distill`. All ranks construct it together, and only the main rank writes files.

    Args:
        config: The configuration.
        runtime: Where it runs; built from the configuration by default.
        resume: Whether to resume from a checkpoint of the folder.
        overwrite: Whether to replace the files of an earlier run in the folder.
        progress: Whether to show progress bars.
        checkpoint: The checkpoint to resume from; the newest by default.
        restarted: Whether the launcher started the ranks again after a failure: the run resumes
            from its newest checkpoint since ``checkpoint``, or starts again if there is none.
        allow_changed: Whether to resume although prompts, embeddings or weights have changed.

    Raises:
        ValueError: If a value is out of its range, the teacher's output is not finite, the folder
            is occupied or in use, or it has no checkpoint to resume, or one of other settings or
            inputs.
        OSError: If the folder cannot be written.
    """

    def __init__(
        self,
        config: DistillConfig,
        *,
        runtime: Runtime | None = None,
        checkpoint: str = "",
        resume: bool = False,
        overwrite: bool = False,
        restarted: bool = False,
        allow_changed: bool = False,
        progress: bool = True,
    ) -> None:
        config.check()
        require("report", "jinja2", "matplotlib", "PIL", "sklearn", "tensorboard")
        self.folder = local_path(config.out, "a run")
        if config.train.buffer_folder:
            local_path(config.train.buffer_folder, "the phase-input buffer")
        self.config, train = config, config.train
        self.began = time.time()
        self.runtime = runtime or config.build_runtime()
        self.allow_changed = allow_changed
        checkpoints = config.train.checkpoint_folder
        own = [] if is_url(checkpoints) or not checkpoints else [Path(checkpoints)]
        self.locks = RunLocks([self.folder, *own])
        self.progress = progress and self.runtime.main
        self.training = self.started = False
        with self.runtime.ranks.consensus():
            self.runtime.ranks.local_batch(train.batch_size)
            if self.runtime.main and self.folder.exists() and not self.folder.is_dir():
                raise ValueError(f"{self.folder} is a file; choose another --out")
            if self.runtime.main:
                self.locks.check()
                check_writable(self.folder)
        occupied = self.folder.exists() and any(
            path.name not in BEFORE for path in self.folder.iterdir()
        )
        self._checkpointer = functools.partial(
            build_checkpointer,
            train,
            self.folder,
            began=self.began,
            fingerprint=fingerprint(config),
            allow_changed=allow_changed,
        )
        self.checkpointer = self._checkpointer(name=checkpoint)  # may write there to test it
        unfinished = self.checkpointer.exists()
        if restarted:
            resume, overwrite = unfinished, not unfinished
            self.checkpointer.restart()
        self.resume, self.overwrite = resume, overwrite
        with self.runtime.ranks.consensus():
            if self.runtime.main:
                check_folder(
                    self.folder,
                    resume=resume,
                    overwrite=overwrite,
                    occupied=occupied,
                    unfinished=unfinished,
                )
            placement = self.runtime.placement
            teacher = config.teacher.build(outlined=not placement.in_place)
            self.teacher = placement.outline(teacher) if has_weights(teacher) else teacher
            self.plan = config.plan.build(self.teacher.schedule)
            self.buckets = config.teacher.build_buckets(self.teacher)
            self.generator_objective, self.fake_objective = config.objective.build()
            self.conditions = encode(self.teacher, None)
            self.monitors = build_monitors(config, self.folder, self.teacher, self.conditions)
            objectives = self.generator_objective, self.fake_objective
            check_objectives(self.plan, *objectives)
            rollouts = Rollouts(truncation=train.build_truncation())
            check_fake_scores(self.plan, rollouts, train.build_fake_scores())
            check_buckets(self.teacher, self.plan, self.buckets, *objectives)
            check_discriminators(self.fake_objective, self.teacher, placement)
            if placement.in_place and self.runtime.device.type == "cpu":  # else distill does it
                check_teacher(
                    self.teacher, self.plan, objectives[0], self.conditions, self.buckets
                )
            for steps in (config.evaluate.teacher_steps, self.plan.nfe):
                ode_times(self.teacher, steps)
            self.start = RunStart(config, self.teacher, self.conditions, placement)
            if self.runtime.main:
                listed = self.teacher.prompts
                inputs = {**digest_inputs(config), **digest_images(listed)}
                self.checkpointer.add_inputs({**inputs, "prompts": digest_prompts(listed)})
        if resume:
            self.checkpointer.read()
        self.account = Account()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder within a block, so that no other process writes to it.

        All ranks enter it together. :meth:`distill` and :meth:`evaluate` enter it themselves.

        Raises:
            ValueError: If another process holds it; says which one.
        """
        with contextlib.ExitStack() as held:
            with self.runtime.ranks.consensus():
                if self.runtime.main:
                    held.enter_context(self.locks.held())
                    new = not (self.started or self.resume or self.overwrite)
                    if new and (self.folder / "config.toml").exists():
                        raise ValueError(f"another process has used {self.folder} meanwhile")
            yield

    def distill(self) -> Student:
        """Trains the student and saves it.

        Raises:
            Interrupted: If a stop was requested; a checkpoint is written.
            NonFiniteError: If losses or gradients are not finite, more often than may be skipped.
            ValueError: If another process writes to the folder.
        """
        with self.locked():
            return self._distill()

    def _distill(self) -> Student:
        config, train = self.config, self.config.train
        started, self.started = time.perf_counter(), True
        if self.overwrite and not self.resume:
            self.checkpointer.clear()
            if self.runtime.main:
                clear_folder(self.folder)
        if self.runtime.main:
            path = self.folder / "config.toml"
            mark_finished(self.folder, False)  # while it is trained longer
            if not (self.resume and same_config(config, path)):
                write_config(config, path)
            if not self.resume or not (self.folder / "plan.json").exists():
                write_plan(self.folder / "plan.json", self.plan, self.teacher.schedule)
            for line in describe_changes(self.checkpointer.changes):
                say(f"pdmd: {line}")
            if not self.resume:
                notify(self.folder, config.teacher.notice())
                notify(self.folder, config.student.notice(self.generator_objective))
        self.checkpointer.store.check()  # now that the folder exists
        main, progress = self.runtime.main, self.progress
        recorder = build_recorder(config, self.folder, main=main, progress=progress)
        initializer, source = self.start.build(progress=self.progress)
        optimizer, fake_optimizer = train.recipes(self.plan)
        self.training = True
        student = distill(
            self.teacher,
            self.plan,
            updates=train.updates_of(self.plan),
            generator_objective=self.generator_objective,
            fake_objective=self.fake_objective,
            experts=ExpertTraining(
                initializer=initializer,
                expert=experts[train.expert],
                curriculum=train.build_curriculum(),
                optimizer=optimizer,
                ema=train.ema,
                max_grad_norm=train.max_grad_norm,
                accumulate=train.accumulate,
            ),
            rollouts=Rollouts(
                batch_size=train.batch_size,
                truncation=train.build_truncation(),
                phase_inputs=train.build_phase_inputs(self.plan),
                buckets=self.buckets,
            ),
            fake_scores=FakeScoreTraining(
                updates=train.build_fake_updates(self.plan),
                updates_per_rollout=train.fake_updates_per_rollout,
                accumulate=train.fake_accumulate,
                scores=train.build_fake_scores(),
                optimizer=fake_optimizer,
                max_grad_norm=train.max_grad_norm,
            ),
            session=Session(
                runtime=self.runtime,
                recorder=recorder,
                checkpointer=self.checkpointer,
                resume=self.resume,
                account=self.account,
                max_consecutive_skips=train.max_consecutive_skips,
                monitors=self.monitors,
            ),
            conditions=self.conditions,
            seed=train.seed,
            source=source,
            check_score=config.teacher.check_score,
        )
        self.training = False
        student.save(self.folder / "student")  # on all ranks, from their shards
        if self.runtime.main:
            few = [self.teacher.prompts[i] for i in range(min(2, len(self.teacher.prompts)))]
            summary = {
                "teacher": config.teacher.name,
                "guidance": list(config.teacher.guidance),
                "finished": False,
                "generator_objective": repr(self.generator_objective),
                "fake_objective": repr(self.fake_objective),
                "parameters": sum(p.numel() for p in student.experts[0].parameters()),
                "seconds": round(time.perf_counter() - started, 1),
                "evaluations": self.account.state(),
                "prompts": [p for p in few if isinstance(p, str | int)],  # for the report
            }
            write_file(self.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        if self.runtime.ranks.any(self.checkpointer.stopping()):  # after the last update
            raise Interrupted("stopped before the evaluation")
        return student

    def leave(self) -> None:
        """Releases the other ranks; everything after runs on the main rank alone."""
        self.runtime.ranks.close()
        if self.runtime.main:
            self.checkpointer = self._checkpointer()

    def evaluate(self, student: Student) -> list[dict[str, Any]]:
        """Evaluates the student, draws its grids and writes the report.

        All ranks sample together, from their shards, and leave; the main one does the rest. By
        default, a student whose teacher is large is not sampled
        (:mod:`pdmd.cli.final_evaluation`).

        Returns:
            The rows of ``metrics.json``; none on other ranks, or if the student is not sampled.
        """
        with self.locked():
            return self._evaluate(student)

    def _evaluate(self, student: Student) -> list[dict[str, Any]]:
        from pdmd.evaluation.report import write_report

        where = self.folder, self.teacher, self.runtime
        evaluation = FinalEvaluation(self.config.evaluate, *where, progress=self.progress)
        wanted = evaluation.wanted
        drawn = evaluation.sample(student, self._placed_teacher()) if wanted else {}
        self.leave()
        if not self.runtime.main:
            return []
        rows = evaluation.write(student, drawn) if wanted else []
        write_report(self.folder)
        leave_checkpoints(self.checkpointer, self.folder, self.config.train.checkpoint_keep)
        mark_finished(self.folder, True)
        return rows

    def _placed_teacher(self) -> Denoiser:
        """Returns the teacher as it is sampled: sharded, where networks are."""
        placement = self.runtime.placement
        if placement.in_place or not has_weights(self.teacher):
            return self.teacher
        offload, precision = self.runtime.offload.teacher, self.runtime.types.teacher
        shared = any(self.config.lora.build())
        return placement.frozen(self.teacher, shared=shared, offload=offload, precision=precision)

    def stop_on(self, *numbers: int) -> AbstractContextManager[None]:
        """Stops after the current update on a signal, and immediately on a second one.

        Outside of training the first signal stops immediately.

        Args:
            numbers: The signals.
        """
        return stop_on(numbers, self._request_stop)

    def _request_stop(self) -> bool:
        if self.checkpointer.stop_requested or not self.training:
            return False
        self.checkpointer.stop_requested = True
        say("\npdmd: stopping after this update (repeat to stop immediately)")
        return True
