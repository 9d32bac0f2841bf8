"""The command `pdmd plan`: what a configuration costs and where it fits."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from pdmd.cli.arguments import parse_config
from pdmd.cli.config import DistillConfig, TeacherConfig
from pdmd.distillation.initializers import FromDenoiser, FromTeacher, Initializer, LowRankRoles
from pdmd.distributed.degrees import PRECISIONS
from pdmd.files import local_path, write_file
from pdmd.planning.evaluations import Work
from pdmd.planning.memory import Precision
from pdmd.planning.run_plan import RunPlan, check_cluster, measure_roles, plan_roles
from pdmd.teachers.base import Teacher, import_plugins, networks, outline_arguments
from pdmd.teachers.packaged.pretraining import network_arguments

__all__ = ["outlined", "plan_command", "plan_run"]


@dataclass(kw_only=True)
class PlanOptions:
    """On what to run, and how."""

    gpus: int = 1
    """GPUs."""
    memory: float = 80.0
    """Memory of each GPU, in GiB."""
    show: int = 10
    """Choices of degrees to list."""
    json: str = ""
    """Also write all figures to this JSON file."""


def plan_command(words: list[str]) -> int:
    """Builds the networks without their weights, and prints what a run would take."""
    import json

    from pdmd.planning import tables

    parsed = parse_config(words, "plan", PlanOptions(), plan_command.__doc__)
    options: PlanOptions = parsed.options
    if options.show < 1:
        raise ValueError(f"--show is at least 1, got {options.show}")
    if options.json and Path(options.json).suffix != ".json":
        raise ValueError(f"--json ends in .json, got {options.json!r}")
    local_path(options.json, "a plan")
    plan = plan_run(
        parsed.config,
        gpus=options.gpus,
        memory=options.memory,
    )
    if options.json:
        out = local_path(options.json, "a plan")
        out.parent.mkdir(parents=True, exist_ok=True)
        write_file(out, json.dumps(plan.figures(), indent=2) + "\n")
    print(tables(plan, show=options.show))
    return 0


def plan_run(config: DistillConfig, *, gpus: int = 1, memory: float = 80.0) -> RunPlan:
    """Plans a configured run; no weight is trained, and none loaded where that can be helped.

    Precision and recomputation are the configuration's. Where the number of fake updates follows
    the fake score's relative error, the most of them are planned.

    Args:
        config: The configuration.
        gpus: The number of ranks.
        memory: The memory of each, in GiB.

    Returns:
        The plan.

    Raises:
        ValueError: If a setting is off, or no degrees divide the work.
    """
    check_cluster(gpus, memory)
    config.check()
    if config.parallel.activation_checkpointing == "selective":
        raise ValueError(
            "the memory of selective activation checkpointing cannot be planned; plan with "
            "parallel.activation_checkpointing = "
            "'none', which needs more memory, or 'full', which needs less"
        )
    compute = PRECISIONS[config.parallel.precision]
    teacher = outlined(config.teacher)
    condition = teacher.encode(list(teacher.prompts)[:1])
    guided = set(config.teacher.guidance) != {1.0}
    if guided and condition is None:
        raise ValueError(
            f"{config.teacher.name} takes no conditions, so it cannot be guided; use "
            "teacher.guidance = 1"
        )
    plan = config.plan.build()
    work = Work(
        plan=plan,
        truncation=config.train.build_truncation(),
        batch_size=config.train.batch_size,
        fake_updates=config.train.fake_updates,
        accumulate=config.train.accumulate,
        timestep_samples=config.objective.timestep_samples,
        evaluations=2 if guided else 1,
        fake_updates_per_rollout=config.train.fake_updates_per_rollout,
        phase_inputs=config.train.build_phase_inputs(plan),
        updates=tuple(config.train.updates_of(plan)),
        activation_checkpointing=config.parallel.activation_checkpointing == "full",
    )
    adapters = config.lora.build()
    init: Initializer = LowRankRoles(*adapters) if any(adapters) else FromTeacher()
    if not any(True for _ in teacher.parameters()):
        if any(adapters):
            raise ValueError(
                f"{config.teacher.name} has no weights to adapt; plan full weights, with "
                "lora.rank = 0 and lora.fake_rank = 0"
            )
        arguments = network_arguments(
            teacher,
            condition,
            teacher_name=config.teacher.name,
            name=config.network.name,
            width=config.network.width,
            depth=config.network.depth,
        )
        with torch.device("meta"):
            network = networks[config.network.name](**arguments, schedule=teacher.schedule)
        init = FromDenoiser(network)
    precision = Precision(compute=compute, frozen=compute)
    roles = measure_roles(teacher, init, condition, work, precision=precision)
    name = config.teacher.name
    return plan_roles(roles, work, name=name, gpus=gpus, memory=memory, precision=precision)


def outlined(config: TeacherConfig) -> Teacher:
    """Builds a teacher without guidance, on the meta device where its making allows it.

    Args:
        config: What to build.

    Raises:
        ValueError: If it cannot be built.
    """
    import_plugins(config.plugins)
    outline = outline_arguments(config.name)
    arguments = {**config.arguments, **outline}
    plain = dataclasses.replace(config, guidance=(1.0,), arguments=arguments)
    if outline:
        return plain.build()
    try:
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")  # weights are not copied: that is the point
            teacher = plain.build()
        if any(True for _ in teacher.parameters()):
            return teacher
    except (ValueError, NotImplementedError, RuntimeError):
        pass  # it computes while it is made, or its arguments are off
    return plain.build()
