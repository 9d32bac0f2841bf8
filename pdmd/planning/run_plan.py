"""The plan of a run: what a configuration costs and where it fits, before anything is rented."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pdmd.diffusion.denoisers import Denoiser
from pdmd.distillation.initializers import Initializer
from pdmd.planning.evaluations import Calls, Work, calls
from pdmd.planning.footprint import Footprint, measure
from pdmd.planning.memory import Precision, Roles
from pdmd.planning.search import Choice, search
from pdmd.planning.traffic import flops_of
from pdmd.typing import Condition

__all__ = ["RunPlan", "measure_roles", "check_cluster", "plan_roles"]

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
            "activation_checkpointing": self.work.activation_checkpointing,
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
                activation_checkpointing=work.activation_checkpointing,
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
    check_cluster(gpus, memory)
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


def check_cluster(gpus: int, memory: float) -> None:
    """Checks the number of GPUs and their memory in GiB.

    Raises:
        ValueError: If one is out of range.
    """
    if not 1 <= gpus <= MOST_GPUS:
        raise ValueError(f"the number of GPUs is from 1 to {MOST_GPUS:,}, got {gpus}")
    if not (memory > 0 and math.isfinite(memory)):
        raise ValueError(f"the memory of a GPU is positive, in GiB, got {memory}")


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
