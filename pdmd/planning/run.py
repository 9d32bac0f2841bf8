"""The plan of a run: what a configuration costs and where it fits, before anything is rented."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pdmd.denoisers import Denoiser
from pdmd.planning.evaluations import Calls, Work, calls
from pdmd.planning.footprint import Footprint, measure
from pdmd.planning.memory import Precision, Roles
from pdmd.planning.search import Choice, search
from pdmd.planning.traffic import flops_of
from pdmd.teachers.base import Teacher, import_plugins, networks, outline_arguments
from pdmd.training.config import DistillConfig, TeacherConfig
from pdmd.training.initializers import FromDenoiser, FromTeacher, Initializer, LowRankRoles
from pdmd.training.parallelism import PRECISIONS
from pdmd.training.teaching import network_arguments
from pdmd.typing import Condition

__all__ = ["RunPlan", "measure_roles", "outlined", "plan_roles", "plan_run"]

"""The types that networks compute in, by name."""

MOST_GPUS = 100_000


@dataclass(frozen=True, kw_only=True, eq=False)
class RunPlan:
    """What a run costs and where it fits.

    Attributes:
        name: What is distilled.
        work: What the training does.
        roles: The footprints of every phase's networks.
        calls: Calls of the networks in a cycle of every phase, for each sample.
        flops: Operations in a cycle of every phase, by role, over all ranks.
        choices: All degrees of parallelism; those that fit first, by what a rank sends.
        gpus: The number of ranks.
        memory: The memory of each, in bytes.
        precision: In how many bytes parameters are held and computed with.
    """

    name: str
    work: Work
    roles: tuple[Roles, ...]
    calls: tuple[Calls, ...]
    flops: tuple[dict[str, float], ...]
    choices: tuple[Choice, ...]
    gpus: int
    memory: float
    precision: Precision

    @property
    def fitting(self) -> tuple[Choice, ...]:
        """The choices that fit, the one that sends least first."""
        return tuple(choice for choice in self.choices if choice.fits)

    @property
    def least(self) -> Choice:
        """The choice that needs least memory."""
        return min(self.choices, key=lambda choice: choice.memory.total)

    def figures(self) -> dict[str, Any]:
        """Returns all figures as plain values, in bytes and operations, for JSON."""
        return {
            "name": self.name,
            "gpus": self.gpus,
            "memory": self.memory,
            "precision": str(self.precision.compute).removeprefix("torch."),
            "frozen_precision": str(self.precision.frozen).removeprefix("torch."),
            "recompute": self.work.recompute,
            "batch_size": self.work.batch_size,
            "phases": [
                {
                    "teacher": _figures(roles.teacher),
                    "generator": _figures(roles.generator),
                    "fake": _figures(roles.fake),
                    "forward": number.forward,
                    "backward": number.backward,
                    "recomputed": number.recomputed,
                    "flops": flops,
                }
                for roles, number, flops in zip(self.roles, self.calls, self.flops, strict=True)
            ],
            "choices": [
                {
                    **dataclasses.asdict(choice.degrees),
                    "fits": choice.fits,
                    "phase": choice.phase + 1,
                    "moment": choice.memory.moment,
                    "bytes": choice.memory.total,
                    "memory": choice.memory.items,
                    "sent": choice.traffic.total,
                    "traffic": dataclasses.asdict(choice.traffic),
                }
                for choice in self.choices
            ],
        }


def measure_roles(
    teacher: Denoiser,
    init: Initializer,
    condition: Condition,
    work: Work,
    *,
    precision: Precision,
) -> tuple[Roles, ...]:
    """Measures the networks of every phase; those that are alike are measured once.

    Args:
        teacher: The teacher, without guidance, best on the meta device.
        init: Where a phase's networks start, and so what they are.
        condition: A condition of batch size 1, or ``None``.
        work: What the training does; its batch does not matter.
        precision: In how many bytes parameters are held and computed with.

    Returns:
        The footprints by role, of every phase.
    """
    measured: dict[Any, Footprint] = {}

    def trained(network: Denoiser, steps: int) -> Footprint:
        parts = tuple((n, tuple(p.shape)) for n, p in network.named_parameters())
        key = (steps, type(network), parts)
        if key not in measured:
            measured[key] = measure(
                network,
                condition,
                train=True,
                steps=steps,
                dtype=precision.compute,
                recompute=work.recompute,
            )
        return measured[key]

    asked = measure(teacher, condition, train=False, dtype=precision.compute)
    roles: list[Roles] = []
    for k, phase in enumerate(work.plan):
        generator = trained(init.expert(teacher, phase, []), work.recorded_steps(k))
        fake = trained(init.fake(teacher, phase), 1)
        frozen = tuple(r.generator for r in roles)
        roles.append(Roles(teacher=asked, generator=generator, fake=fake, frozen=frozen))
    return tuple(roles)


def plan_roles(
    roles: Sequence[Roles],
    work: Work,
    *,
    name: str = "",
    gpus: int = 1,
    memory: float = 80.0,
    precision: Precision,
) -> RunPlan:
    """Plans a training whose networks are measured.

    Args:
        roles: The footprints of every phase's networks.
        work: What the training does, as they were measured for.
        name: What is distilled, as tables call it.
        gpus: The number of ranks.
        memory: The memory of each, in GiB.
        precision: The precision that they were measured with.

    Returns:
        The plan.

    Raises:
        ValueError: If a number is out of its range, or no degrees divide the work.
    """
    _check(gpus, memory)
    choices = search(roles, work, gpus=gpus, memory=memory * 2**30, precision=precision)
    phases = range(len(work.plan))
    return RunPlan(
        name=name,
        work=work,
        roles=tuple(roles),
        calls=tuple(calls(work, k) for k in phases),
        flops=tuple(flops_of(roles[k], work, k) for k in phases),
        choices=tuple(choices),
        gpus=gpus,
        memory=memory * 2**30,
        precision=precision,
    )


def plan_run(config: DistillConfig, *, gpus: int = 1, memory: float = 80.0) -> RunPlan:
    """Plans a configured run; no weight is trained, and none loaded where that can be helped.

    Precision and recomputation are the configuration's. Where the number of fake updates follows
    the fake score's lag, the most of them are planned.

    Args:
        config: The configuration.
        gpus: The number of ranks.
        memory: The memory of each, in GiB.

    Returns:
        The plan.

    Raises:
        ValueError: If a setting is off, or no degrees divide the work.
    """
    _check(gpus, memory)
    config.check()
    if config.parallel.recompute == "selective":
        raise ValueError(
            "what selective recomputation keeps is not planned; plan with parallel.recompute = "
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
        draws=config.objective.draws,
        evaluations=2 if guided else 1,
        anchored=config.train.anchored,
        entries=config.train.build_entries(plan),
        updates=tuple(config.train.updates_of(plan)),
        recompute=config.parallel.recompute == "full",
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


def _check(gpus: int, memory: float) -> None:
    if not 1 <= gpus <= MOST_GPUS:
        raise ValueError(f"the number of GPUs is from 1 to {MOST_GPUS:,}, got {gpus}")
    if not (memory > 0 and math.isfinite(memory)):
        raise ValueError(f"the memory of a GPU is positive, in GiB, got {memory}")


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


def _figures(network: Footprint) -> dict[str, Any]:
    return {
        "parameters": network.parameters,
        "units": len(network.units),
        "tokens": network.tokens,
        "heads": network.heads,
        "forward_flops": network.flops,
        "backward_flops": network.backward_flops,
        "recomputed_flops": network.recomputed_flops,
    }
