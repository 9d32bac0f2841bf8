"""Unfinished students: the experts so far of a run, from its newest checkpoint."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pdmd.cli.config_files import read_config
from pdmd.cli.resumed_settings import fingerprint
from pdmd.cli.run_checkpoints import build_checkpointer
from pdmd.distillation.experts import Expert, experts
from pdmd.distillation.finished import FinishedExperts
from pdmd.distillation.initializers import FromDenoiser
from pdmd.distillation.student_folders import check_places
from pdmd.distributed.runtime import OneProcess
from pdmd.documents import read_toml
from pdmd.files import is_url
from pdmd.teachers.base import Teacher
from pdmd.teachers.packaged.pretraining import network_arguments
from pdmd.training.checkpoints.training_state import load_average
from pdmd.training.expert_training import ExpertTraining

__all__ = ["UnfinishedStudent", "is_unfinished", "load_unfinished"]


class UnfinishedStudent(NamedTuple):
    """The experts so far of a run, and its teacher, which continues them.

    Attributes:
        experts: The finished experts, and the average of the one in training.
        teacher: The teacher of the run, with its guidance and schedule.
        checkpoint: The name of the checkpoint.
        phase: Number of the phase in training, from 1.
        update: Its update, 0 between two phases.
        phases: The number of phases.
    """

    experts: Sequence[Expert]
    teacher: Teacher
    checkpoint: str
    phase: int
    update: int
    phases: int

    def __str__(self) -> str:
        return f"phase {self.phase} of {self.phases}, update {self.update}"


def is_unfinished(folder: Path) -> bool:
    """Returns whether a folder is that of a run which has no student yet."""
    return (folder / "config.toml").is_file() and not (
        folder / "student" / "student.json"
    ).is_file()


def load_unfinished(
    folder: Path,
    *,
    checkpoint: str = "",
    device: torch.device,
    arguments: Mapping[str, Any] = {},
    plugins: Collection[str] = (),
    trust_source: bool = False,
) -> UnfinishedStudent:
    """Loads the student so far of a run.

    The run may still train: nothing in its folder is written or locked.

    Args:
        folder: The run folder.
        checkpoint: The checkpoint; the newest by default.
        device: The device on which to sample.
        arguments: Arguments of the teacher that replace those of the run.
        plugins: Modules that the user names; the run may name them too.
        trust_source: Whether to use the URLs, cache folders and plugins that the run's
            configuration names, as of a student's folder.

    Raises:
        ValueError: If there is no checkpoint, it is damaged, or the configuration names places
            that are not trusted.
    """
    config = read_config(read_toml(folder / "config.toml")[1])
    if not trust_source:
        named = {
            "arguments": config.teacher.arguments,
            "plugins": [name for name in config.teacher.plugins if name not in plugins],
            "checkpoint_folder": config.train.checkpoint_folder,
        }
        check_places(named, folder, except_for=arguments)
    config.teacher.arguments = {**config.teacher.arguments, **arguments}
    where = config.train.checkpoint_folder
    if not is_url(where) and not Path(where or folder / "checkpoint").is_dir():
        raise ValueError(f"{folder} has neither a student nor a checkpoint yet")
    checkpointer = build_checkpointer(
        config.train,
        folder,
        began=time.time(),
        fingerprint=fingerprint(config),
        allow_changed=True,
        name=checkpoint,
    )
    cursor = checkpointer.read()
    teacher, plan, train = config.teacher.build(), config.plan.build(), config.train
    origin = None
    if not any(True for _ in teacher.parameters()):
        described = network_arguments(
            teacher,
            teacher.conditions(teacher.prompts),
            teacher_name=config.teacher.name,
            name=config.network.name,
            arguments=config.network.arguments,
        )
        origin = FromDenoiser(config.network.build(described, teacher.schedule))
    training = ExpertTraining(
        initializer=train.build_initializer(origin, config.lora.build()),
        expert=experts[train.expert],
        curriculum=train.build_curriculum(),
        ema=train.ema,
    )
    runtime = OneProcess(device)
    finished = FinishedExperts(teacher, training, runtime)
    for group in training.curriculum.groups(plan):
        if group[0].index < cursor["finished"]:
            finished.restore(group, checkpointer)
        elif group[0].index == cursor["finished"] and cursor["update"] is not None:
            built = finished.initialize(group)
            for expert in built:
                runtime.placement.trained(expert.denoiser)
            load_average(checkpointer, built, runtime.states, averaged=train.ema > 0)
            finished.gather(group, built)
    return UnfinishedStudent(
        experts=[expert.requires_grad_(False).eval() for expert in finished.experts],
        teacher=teacher.requires_grad_(False).eval().to(device),
        checkpoint=checkpointer.last_name(),
        phase=min(cursor["finished"] + 1, len(plan)),
        update=cursor["update"] or 0,
        phases=len(plan),
    )
