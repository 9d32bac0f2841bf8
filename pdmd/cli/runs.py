"""Runs: the main job, from a configuration to a folder.

A run folder holds ``config.toml`` (the resolved configuration), ``plan.json``, ``history.jsonl``
and ``tensorboard/`` (scalars), ``calibration.json``, ``student/``, ``metrics.json``,
``summary.json``, ``grids/`` and ``report.html``; while the run goes on, also ``checkpoint/``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from pdmd.cli.config import DistillConfig
from pdmd.cli.config_files import write_config
from pdmd.diffusion.sampling import ode_times
from pdmd.diffusion.schedules import Schedule
from pdmd.distillation.distill import check_teacher, distill
from pdmd.distillation.experts import experts
from pdmd.distillation.initializers import (
    FromDenoiser,
    FromPrevious,
    FromTeacher,
    Initializer,
    LowRankRoles,
)
from pdmd.distillation.low_rank import layers_of
from pdmd.distillation.phases import PhasePlan
from pdmd.distillation.student_folders import describe_plan
from pdmd.distillation.students import Student
from pdmd.distributed.runtime import Runtime
from pdmd.evaluation.evaluate import evaluate
from pdmd.files import local_path, write_file
from pdmd.teachers.base import Teacher, networks
from pdmd.teachers.guided import unguided
from pdmd.teachers.packaged.pretraining import network_arguments, pretrained_network
from pdmd.training.checkpoints.checkpointer import Checkpointer, Interrupted
from pdmd.training.checkpoints.store import Store
from pdmd.training.monitoring.accounting import Account
from pdmd.training.monitoring.recorder import NullRecorder, RunRecorder
from pdmd.typing import Condition

__all__ = ["Run"]

LEFT_BEHIND = (
    "student/student.json",
    "student/expert_*.safetensors",
    "tensorboard/events.out.*",
    "grids/samples.png",
    "grids/phase_*.png",
    "history.jsonl",
    "calibration.json",
    "metrics.json",
    "summary.json",
    "report.html",
    "plan.json",
)
"""What a run leaves, and a run that replaces it removes; other files in its folder stay."""


class Run:
    """One distillation with its folder.

    Making it checks all that can be checked; nothing is written before :meth:`distill`. Ranks make
    it together; the main one alone writes files.

    Args:
        config: The configuration.
        runtime: Where it runs; made of the configuration by default.
        resume: Whether to go on from the folder's checkpoint.
        overwrite: Whether to replace what an earlier run left in the folder.
        progress: Whether to show progress bars.
        checkpoint: The checkpoint to resume from; the newest by default.

    Raises:
        ValueError: If a setting is off, the teacher's answers are not finite, or the folder is in
            the way or has no checkpoint to resume.
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
        with self.runtime.agreed():
            self.runtime.local(train.batch_size)
            if self.runtime.main and self.folder.exists() and not self.folder.is_dir():
                raise ValueError(f"{self.folder} is a file; choose another --out")
        occupied = self.folder.exists() and any(self.folder.iterdir())
        self.checkpointer = self._checkpointer(checkpoint)  # may look whether it can write there
        unfinished = self.checkpointer.exists()
        with self.runtime.agreed():
            if self.runtime.main:
                self._check_folder(unfinished, occupied)
            self.teacher = config.teacher.build()
            self.plan = config.plan.build()
            self.generator, self.fake_score = config.objective.build()
            condition = self.teacher.conditions(self.teacher.prompts)
            if self.runtime.plain:  # a spread teacher is checked once it is spread
                check_teacher(self.teacher, self.plan, self.generator, condition)
            if not _has_weights(self.teacher) and not hasattr(unguided(self.teacher), "sample"):
                raise ValueError(
                    f"{config.teacher.name} has neither weights nor samples to teach a network "
                    "on; give the teacher parameters or a sample(n, condition, generator=...) "
                    "method"
                )
            for steps in (config.evaluate.teacher_steps, self.plan.nfe):
                ode_times(self.teacher, steps)
            network: nn.Module = self.teacher
            if not _has_weights(self.teacher):
                network = networks[config.network.name](
                    **self._network_arguments(condition), schedule=self.teacher.schedule
                )
            self.runtime.check(network)
            self._check_lora()
        if resume:
            self.checkpointer.read()
        self.account = Account()

    def distill(self) -> Student:
        """Trains the student and saves it.

        Raises:
            Interrupted: If the checkpointer was asked to stop; its checkpoint is written.
            NonFiniteError: If a loss or gradient is not finite.
        """
        config, train = self.config, self.config.train
        started = time.perf_counter()
        if self.overwrite and not self.resume:
            self.checkpointer.clear()
            if self.runtime.main:
                self._clear()
        if self.runtime.main:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self.resume or not (self.folder / "config.toml").exists():
                write_config(config, self.folder / "config.toml")
            _write_plan(self.folder / "plan.json", self.plan, self.teacher.schedule)
        self.checkpointer.store.check()  # now that the folder is made
        init, source = self._start()
        optimizer, fake_optimizer = train.recipes()
        self.training = True
        student = distill(
            self.teacher,
            self.plan,
            generator=self.generator,
            fake_score=self.fake_score,
            init=init,
            expert=experts[train.expert],
            truncation=train.build_truncation(),
            updates=train.updates_of(self.plan),
            fake_updates=train.build_fake_updates(),
            batch_size=train.batch_size,
            accumulate=train.accumulate,
            fake_updates_per_rollout=train.fake_updates_per_rollout,
            phase_inputs=train.build_phase_inputs(self.plan),
            optimizer=optimizer,
            fake_optimizer=fake_optimizer,
            ema=train.ema,
            max_grad_norm=train.max_grad_norm,
            seed=train.seed,
            max_consecutive_skips=train.max_consecutive_skips,
            runtime=self.runtime,
            recorder=RunRecorder(self.folder, progress=self.progress)
            if self.runtime.main
            else NullRecorder(),
            checkpointer=self.checkpointer,
            resume=self.resume,
            account=self.account,
            source=source,
        )
        self.training = False
        if not self.runtime.main:
            return student
        student.save(self.folder / "student")
        few = [self.teacher.prompts[i] for i in range(min(2, len(self.teacher.prompts)))]
        summary = {
            "teacher": config.teacher.name,
            "guidance": list(config.teacher.guidance),
            "generator_objective": repr(self.generator),
            "fake_objective": repr(self.fake_score),
            "parameters": sum(p.numel() for p in student.experts[0].parameters()),
            "seconds": round(time.perf_counter() - started, 1),
            "evaluations": self.account.state(),
            "prompts": [p for p in few if isinstance(p, str | int)],  # to show how to ask
        }
        write_file(self.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        if self.checkpointer.stop_requested:  # after the last update
            raise Interrupted("stopped before the evaluation")
        return student

    def leave(self) -> None:
        """Lets the other ranks go; what comes after is the main one's alone."""
        self.runtime.close()
        if self.runtime.main:
            self.checkpointer = self._checkpointer()

    def evaluate(self, student: Student) -> list[dict[str, Any]]:
        """Measures the student, draws the grids and writes the report; on the main rank alone.

        Returns:
            The rows of ``metrics.json``.
        """
        from pdmd.evaluation.report import write_grids, write_report

        config = self.config.evaluate
        metrics = evaluate(
            student,
            self.teacher,
            samples=config.samples,
            seed=config.seed,
            teacher_steps=config.teacher_steps,
            progress=self.progress,
        )
        write_file(self.folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        write_grids(self.folder, student, self.teacher, teacher_steps=config.teacher_steps)
        write_report(self.folder)
        self.checkpointer.clear()
        with contextlib.suppress(OSError):  # kept elsewhere, or something of the user's is there
            (self.folder / "checkpoint").rmdir()
        return metrics["rows"]

    @contextlib.contextmanager
    def stop_on(self, *numbers: int) -> Iterator[None]:
        """Stops at a clean point on a signal, and at once on a second one.

        Outside of training every point is clean: the first signal stops at once.
        """
        import signal
        import sys

        def request(number: int, frame: Any) -> None:
            if self.checkpointer.stop_requested or not self.training:
                raise KeyboardInterrupt
            self.checkpointer.stop_requested = True
            print(
                "\npdmd: stopping after this update (once more to stop at once)", file=sys.stderr
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
        if config.teacher.schedule:
            source["schedule"] = {
                "name": config.teacher.schedule,
                "end": config.teacher.schedule_end,
            }
        if _has_weights(self.teacher):
            init = FromTeacher() if config.train.init == "teacher" else FromPrevious()
            generator, fake = config.lora.build()
            if generator or fake:
                init = LowRankRoles(generator, fake, start=init, seed=config.train.seed)
            return init, source
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
        return FromDenoiser(network), source

    def _network_arguments(self, condition: Condition) -> dict[str, Any]:
        network = self.config.network
        return network_arguments(
            self.teacher,
            condition,
            teacher_name=self.config.teacher.name,
            name=network.name,
            width=network.width,
            depth=network.depth,
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
            probe=bool(train.checkpoint_folder),  # the run's own folder is not made yet
        )
        return Checkpointer(
            store,
            every=train.checkpoint_every,
            fingerprint=_fingerprint(self.config),
            name=name,
        )

    def _check_folder(self, unfinished: bool, occupied: bool) -> None:
        folder = self.folder
        if self.resume:
            if not unfinished:
                raise ValueError(
                    f"{folder} has no checkpoint to resume; start again without --resume, over an "
                    "earlier run with --overwrite"
                )
            return
        if self.overwrite:
            if occupied and not _is_run(folder):
                raise ValueError(
                    f"{folder} is not a run folder, so it is not overwritten; choose another --out"
                )
            return
        if unfinished:
            raise ValueError(
                f"{folder} holds an unfinished run; use --resume to go on or --overwrite to "
                "start again"
            )
        if occupied:
            raise ValueError(
                f"{folder} is not empty; choose another --out, or replace it with --overwrite"
            )

    def _clear(self) -> None:
        for pattern in LEFT_BEHIND:
            for path in self.folder.glob(pattern):
                path.unlink()
        for folder in ("student", "tensorboard", "grids", "checkpoint"):
            for path in self.folder.glob(folder):
                if path.is_dir() and not any(path.iterdir()):
                    path.rmdir()


def _fingerprint(config: DistillConfig) -> dict[str, Any]:
    """Returns the settings on which a run's numbers depend, up to the order of additions."""
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


def _is_run(folder: Path) -> bool:
    return (folder / "config.toml").is_file() and (folder / "plan.json").is_file()


def _write_plan(path: Path, plan: PhasePlan, schedule: Schedule) -> None:
    phases = describe_plan(plan)
    for phase, entry in zip(plan, phases, strict=True):
        values = [float(schedule.log_snr(t)) for t in (*phase.timesteps, phase.t_end)]
        entry["log_snr"] = [v if math.isfinite(v) else None for v in values]
    write_file(path, json.dumps({"schedule": repr(schedule), "phases": phases}, indent=2) + "\n")
