"""Runs: one distillation from a configuration to a folder.

A run folder contains ``config.toml`` (the resolved configuration), ``plan.json``,
``history.jsonl`` and ``tensorboard/`` (scalars), ``calibration.json``, ``student/``,
``metrics.json``, ``summary.json``, ``grids/`` and ``report.html``; until the run is finished also
``checkpoint/``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from typing import Any

from torch import nn

from pdmd.cli.config import DistillConfig
from pdmd.cli.config_files import write_config
from pdmd.cli.run_folders import check_folder, clear_folder, write_plan
from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.sampling import ode_times
from pdmd.distillation.distill import distill
from pdmd.distillation.experts import experts
from pdmd.distillation.initializers import FromDenoiser, Initializer
from pdmd.distillation.low_rank import layers_of
from pdmd.distillation.students import Student
from pdmd.distillation.validation import check_teacher
from pdmd.distributed.runtime import Runtime
from pdmd.evaluation.evaluate import draw_samples, score
from pdmd.files import local_path, write_file
from pdmd.teachers.base import Teacher
from pdmd.teachers.guided import unguided
from pdmd.teachers.packaged.pretraining import network_arguments, pretrained_network
from pdmd.training.checkpoints.checkpointer import Checkpointer, Interrupted
from pdmd.training.checkpoints.store import Store
from pdmd.training.expert_training import ExpertTraining
from pdmd.training.fake_scores import FakeScoreTraining
from pdmd.training.monitoring.accounting import Account
from pdmd.training.monitoring.recorder import NullRecorder, RunRecorder
from pdmd.training.rollouts import Rollouts
from pdmd.training.session import Session
from pdmd.typing import Condition

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

    Raises:
        ValueError: If a value is out of its range, the teacher's output is not finite, the folder
            is occupied, or it has no checkpoint to resume.
    """

    def __init__(
        self,
        config: DistillConfig,
        *,
        runtime: Runtime | None = None,
        checkpoint: str = "",
        resume: bool = False,
        overwrite: bool = False,
        progress: bool = True,
    ) -> None:
        config.check()
        self.folder = local_path(config.out, "a run")
        if config.train.buffer_folder:
            local_path(config.train.buffer_folder, "the phase-input buffer")
        self.config, train = config, config.train
        self.runtime = runtime or config.parallel.build(train.seed)
        self.resume, self.overwrite = resume, overwrite
        self.progress = progress and self.runtime.main
        self.training = False
        with self.runtime.ranks.consensus():
            self.runtime.ranks.local_batch(train.batch_size)
            if self.runtime.main and self.folder.exists() and not self.folder.is_dir():
                raise ValueError(f"{self.folder} is a file; choose another --out")
        occupied = self.folder.exists() and any(self.folder.iterdir())
        self.checkpointer = self._checkpointer(checkpoint)  # may write to the folder to test it
        unfinished = self.checkpointer.exists()
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
            self.teacher = placement.outline(teacher) if _has_weights(teacher) else teacher
            self.plan = config.plan.build()
            self.generator_objective, self.fake_objective = config.objective.build()
            condition = self.teacher.conditions(self.teacher.prompts)
            if self.runtime.placement.in_place:  # a sharded teacher is checked after sharding
                check_teacher(self.teacher, self.plan, self.generator_objective, condition)
            if not _has_weights(self.teacher) and not hasattr(unguided(self.teacher), "sample"):
                raise ValueError(
                    f"{config.teacher.name} has neither weights nor samples to pretrain a network "
                    "on; give the teacher parameters or a sample(n, condition, generator=...) "
                    "method"
                )
            for steps in (config.evaluate.teacher_steps, self.plan.nfe):
                ode_times(self.teacher, steps)
            network: nn.Module = self.teacher
            if not _has_weights(self.teacher):
                network = config.network.build(
                    self._network_arguments(condition), self.teacher.schedule
                )
            self.runtime.placement.check(network)
            self._check_lora()
            train.build_initializer(
                None if _has_weights(self.teacher) else FromDenoiser(network), config.lora.build()
            )
        if resume:
            self.checkpointer.read()
        self.account = Account()

    def distill(self) -> Student:
        """Trains the student and saves it.

        Raises:
            Interrupted: If a stop was requested; a checkpoint is written.
            NonFiniteError: If losses or gradients are not finite, more often than may be skipped.
        """
        config, train = self.config, self.config.train
        started = time.perf_counter()
        if self.overwrite and not self.resume:
            self.checkpointer.clear()
            if self.runtime.main:
                clear_folder(self.folder)
        if self.runtime.main:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self.resume or not (self.folder / "config.toml").exists():
                write_config(config, self.folder / "config.toml")
            write_plan(self.folder / "plan.json", self.plan, self.teacher.schedule)
        self.checkpointer.store.check()  # now that the folder exists
        initializer, source = self._start()
        optimizer, fake_optimizer = train.recipes()
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
            ),
            fake_scores=FakeScoreTraining(
                updates=train.build_fake_updates(),
                updates_per_rollout=train.fake_updates_per_rollout,
                scores=train.build_fake_scores(),
                optimizer=fake_optimizer,
                max_grad_norm=train.max_grad_norm,
            ),
            session=Session(
                runtime=self.runtime,
                recorder=RunRecorder(self.folder, progress=self.progress)
                if self.runtime.main
                else NullRecorder(),
                checkpointer=self.checkpointer,
                resume=self.resume,
                account=self.account,
                max_consecutive_skips=train.max_consecutive_skips,
            ),
            seed=train.seed,
            source=source,
        )
        self.training = False
        student.save(self.folder / "student")  # on all ranks, from their shards
        if not self.runtime.main:
            self._stop_before_evaluation()
            return student
        few = [self.teacher.prompts[i] for i in range(min(2, len(self.teacher.prompts)))]
        summary = {
            "teacher": config.teacher.name,
            "guidance": list(config.teacher.guidance),
            "generator_objective": repr(self.generator_objective),
            "fake_objective": repr(self.fake_objective),
            "parameters": sum(p.numel() for p in student.experts[0].parameters()),
            "seconds": round(time.perf_counter() - started, 1),
            "evaluations": self.account.state(),
            "prompts": [p for p in few if isinstance(p, str | int)],  # for the report's example
        }
        write_file(self.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        self._stop_before_evaluation()
        return student

    def _stop_before_evaluation(self) -> None:
        if self.checkpointer.should_stop(self.runtime.ranks):  # after the last update
            raise Interrupted("stopped before the evaluation")

    def leave(self) -> None:
        """Releases the other ranks; everything after runs on the main rank alone."""
        self.runtime.ranks.close()
        if self.runtime.main:
            self.checkpointer = self._checkpointer()

    def evaluate(self, student: Student) -> list[dict[str, Any]]:
        """Evaluates the student, draws its grids and writes the report.

        All ranks sample together, from their shards, and leave; the main one does the rest.

        Returns:
            The rows of ``metrics.json``; none on other ranks.
        """
        from pdmd.evaluation.report import draw_grids, write_grids, write_report

        config, real = self.config.evaluate, self._placed_teacher()
        drawn = draw_samples(
            student,
            self.teacher,
            samples=config.samples,
            seed=config.seed,
            teacher_steps=config.teacher_steps,
            progress=self.progress,
            real=real,
            ranks=self.runtime.ranks,
        )
        shown = draw_grids(student, self.teacher, teacher_steps=config.teacher_steps, real=real)
        self.leave()
        if not self.runtime.main:
            return []
        metrics = score(
            student,
            self.teacher,
            drawn,
            seed=config.seed,
            teacher_steps=config.teacher_steps,
        )
        write_file(self.folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        write_grids(
            self.folder,
            student,
            self.teacher,
            teacher_steps=config.teacher_steps,
            drawn=shown,
        )
        write_report(self.folder)
        self.checkpointer.clear()
        with contextlib.suppress(OSError):  # it is elsewhere, or has files of the user
            (self.folder / "checkpoint").rmdir()
        return metrics["rows"]

    def _placed_teacher(self) -> Denoiser:
        """Returns the teacher as it is sampled: sharded, where networks are."""
        placement = self.runtime.placement
        if placement.in_place or not _has_weights(self.teacher):
            return self.teacher
        adapts = any(spec is not None for spec in self.config.lora.build())
        return placement.frozen(self.teacher, shared=adapts)

    @contextlib.contextmanager
    def stop_on(self, *numbers: int) -> Iterator[None]:
        """Stops after the current update on a signal, and immediately on a second one.

        Outside of training the first signal stops immediately.

        Args:
            numbers: The signals.
        """
        import signal
        import sys

        def request(number: int, frame: Any) -> None:
            if self.checkpointer.stop_requested or not self.training:
                raise KeyboardInterrupt
            self.checkpointer.stop_requested = True
            print(
                "\npdmd: stopping after this update (repeat to stop immediately)", file=sys.stderr
            )

        previous = {}
        with contextlib.suppress(ValueError):  # only the main thread may set handlers
            for number in numbers:
                previous[number] = signal.signal(number, request)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _start(self) -> tuple[Initializer, dict[str, Any]]:
        config = self.config
        source: dict[str, Any] = {
            "teacher": config.teacher.name,
            "arguments": config.teacher.arguments,
            "guidance": list(config.teacher.guidance),
        }
        if config.teacher.router:
            source["router"] = dict(config.teacher.router)
        if config.teacher.schedule:
            source["schedule"] = {
                "name": config.teacher.schedule,
                "end": config.teacher.schedule_end,
            }
        if _has_weights(self.teacher):
            return config.train.build_initializer(adapters=config.lora.build()), source
        arguments = self._network_arguments(self.teacher.encode(self.teacher.prompts))
        source["network"] = {"name": config.network.name, "arguments": arguments}
        network = pretrained_network(
            self.teacher,
            config.network.name,
            arguments,
            updates=config.network.updates,
            seed=config.train.seed,
            progress=self.progress,
        )
        return config.train.build_initializer(FromDenoiser(network)), source

    def _network_arguments(self, condition: Condition) -> dict[str, Any]:
        network = self.config.network
        return network_arguments(
            self.teacher,
            condition,
            teacher_name=self.config.teacher.name,
            name=network.name,
            arguments=network.arguments,
        )

    def _check_lora(self) -> None:
        adapters = [spec for spec in self.config.lora.build() if spec]
        if not adapters:
            return
        if not _has_weights(self.teacher):
            raise ValueError(
                f"{self.config.teacher.name} has no weights to adapt; train full weights, with "
                "lora.rank = 0 and lora.fake_rank = 0"
            )
        for spec in adapters:
            layers_of(unguided(self.teacher), spec.targets)

    def _checkpointer(self, name: str = "") -> Checkpointer:
        train = self.config.train
        store = Store(
            train.checkpoint_folder or self.folder / "checkpoint",
            keep=train.checkpoint_keep,
            asynchronous=train.checkpoint_async,
            probe=bool(train.checkpoint_folder),  # the run folder does not exist yet
        )
        return Checkpointer(
            store,
            every=train.checkpoint_every,
            fingerprint=_fingerprint(self.config),
            name=name,
        )


def _fingerprint(config: DistillConfig) -> dict[str, Any]:
    """Returns the settings that determine the numbers of a run, up to rounding."""
    settings = {
        k: v for k, v in dataclasses.asdict(config).items() if k not in ("out", "evaluate")
    }
    settings["parallel"] = {"precision": config.parallel.precision}
    settings["train"] = {
        k: v
        for k, v in settings["train"].items()
        if k not in ("max_consecutive_skips", "buffer_folder") and not k.startswith("checkpoint_")
    }
    return settings


def _has_weights(teacher: Teacher) -> bool:
    return any(True for _ in teacher.parameters())
