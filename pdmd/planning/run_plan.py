"""The plan of a run: its cost in passes, FLOPs, memory and traffic, and the degrees that fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pdmd.arguments import checked
from pdmd.diffusion.denoisers import Denoiser
from pdmd.distillation.initializers import Initializer
from pdmd.distributed.degrees import Degrees
from pdmd.distributed.offload import Offload
from pdmd.planning.clusters import Cluster
from pdmd.planning.evaluations import CyclePasses, Workload, cycle_passes
from pdmd.planning.footprint import Footprint, measure_footprint
from pdmd.planning.memory import PhaseFootprints, Precision
from pdmd.planning.search import Choice, search_degrees
from pdmd.planning.totals import RunTotals, run_totals
from pdmd.planning.traffic import flops_of
from pdmd.typing import Condition

__all__ = ["RunPlan", "measure_roles", "plan_roles"]


@checked
@dataclass(frozen=True, kw_only=True, eq=False)
class RunPlan:
    """The cost of a run, and the degrees of parallelism at which it fits.

    Attributes:
        name: The teacher's name.
        work: The settings of a cycle.
        roles: The footprints of the networks, by phase.
        passes: Network passes in a cycle of each phase, per sample.
        flops: FLOPs of a cycle of each phase, by role, over all ranks.
        choices: All degrees of parallelism; those that fit first, sorted by seconds.
        cluster: The GPUs and their links.
        precision: The dtypes of computation and storage.
        offload: The roles in CPU memory.
        checkpoints: Checkpoints that are kept.
        sizes: If samples have several sizes: the share of each in the batches, and its plan. This
            plan is that of the largest, at degrees that divide every one.
    """

    name: str
    work: Workload
    roles: tuple[PhaseFootprints, ...]
    passes: tuple[CyclePasses, ...]
    flops: tuple[dict[str, float], ...]
    choices: tuple[Choice, ...]
    cluster: Cluster
    precision: Precision
    offload: Offload
    checkpoints: int
    sizes: tuple[tuple[float, RunPlan], ...] = ()

    @classmethod
    def of_sizes(cls, sizes: Sequence[tuple[float, RunPlan]]) -> RunPlan:
        """Returns the plan of samples of several sizes.

        Args:
            sizes: The share of each size in the batches, and its plan on one cluster.

        Raises:
            ValueError: If no degrees divide every size.
        """
        common = set.intersection(*({c.degrees for c in plan.choices} for _, plan in sizes))
        if not common:
            raise ValueError("no degrees of parallelism divide every one of teacher.buckets")
        largest = max((plan for _, plan in sizes), key=lambda plan: plan.roles[0].teacher.flops)
        choices = tuple(choice for choice in largest.choices if choice.degrees in common)
        return dataclasses.replace(largest, choices=choices, sizes=tuple(sizes))

    @property
    def fitting(self) -> tuple[Choice, ...]:
        """The choices that fit, sorted by seconds."""
        return tuple(choice for choice in self.choices if choice.fits)

    @property
    def smallest(self) -> Choice:
        """The choice with the least memory."""
        return min(self.choices, key=lambda choice: choice.memory.total)

    @property
    def best(self) -> Choice:
        """The fastest choice that fits, or the one with the least memory if none fits."""
        return self.choices[0] if self.choices[0].fits else self.smallest

    def totals(self, choice: Choice | None = None) -> RunTotals:
        """Returns the totals of the run; of several sizes, FLOPs and seconds are their means.

        Args:
            choice: The degrees; the best by default.
        """
        choice = choice or self.best
        totals = run_totals(
            self.roles,
            self.work,
            [sum(flops.values()) for flops in self.flops],
            choice.seconds,
            gpus=self.cluster.gpus,
            precision=self.precision,
            checkpoints=self.checkpoints,
        )
        if not self.sizes:
            return totals
        parts = [(share, plan.totals(plan.choice(choice.degrees))) for share, plan in self.sizes]
        means = {
            name: sum(share * getattr(part, name) for share, part in parts)
            for name in ("flops", "seconds", "gpu_hours")
        }
        return dataclasses.replace(totals, **means)

    def choice(self, degrees: Degrees) -> Choice:
        """Returns the choice of these degrees.

        Raises:
            LookupError: If they do not divide the work.
        """
        return {choice.degrees: choice for choice in self.choices}[degrees]

    def to_dict(self) -> dict[str, Any]:
        """Returns the plan as plain values, in bytes and FLOPs, for JSON."""
        return {
            "name": self.name,
            "cluster": dataclasses.asdict(self.cluster),
            "precision": str(self.precision.compute).removeprefix("torch."),
            "frozen_precision": str(self.precision.frozen).removeprefix("torch."),
            "types": {
                **{
                    role: str(self.precision.of(role)).removeprefix("torch.")
                    for role in ("teacher", "generator", "fake")
                },
                "average": str(self.precision.average).removeprefix("torch."),
            },
            "moment_bytes": self.precision.moment_bytes,
            "offload": [name for name, value in vars(self.offload).items() if value],
            "activation_checkpointing": self.work.activation_checkpointing,
            "batch_size": self.work.batch_size,
            "totals": dataclasses.asdict(self.totals()),
            "sizes": [
                {
                    "share": share,
                    "tokens": plan.roles[0].teacher.tokens,
                    "flops": [sum(flops.values()) for flops in plan.flops],
                }
                for share, plan in self.sizes
            ],
            "phases": [
                {
                    "teacher": _summary(roles.teacher),
                    "generator": _summary(roles.generator),
                    "fake": _summary(roles.fake),
                    "forward": passes.forward,
                    "backward": passes.backward,
                    "recomputed": passes.recomputed,
                    "flops": flops,
                }
                for roles, passes, flops in zip(self.roles, self.passes, self.flops, strict=True)
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
                    "host": choice.host,
                    "seconds": [
                        {**dataclasses.asdict(s), "total": s.total} for s in choice.seconds
                    ],
                }
                for choice in self.choices
            ],
        }


@checked
def measure_roles(
    teacher: Denoiser,
    init: Initializer,
    condition: Condition,
    work: Workload,
    *,
    precision: Precision,
) -> tuple[PhaseFootprints, ...]:
    """Measures the networks of every phase; identical networks are measured once.

    Args:
        teacher: The teacher, without guidance, preferably on the meta device.
        init: The initializer of a phase's networks, which determines their architecture.
        condition: A condition of batch size 1, or ``None``.
        work: The settings of a cycle; the batch size has no effect.
        precision: The dtypes of computation and storage.

    Returns:
        The footprints of the networks, by phase.
    """
    measured: dict[Any, Footprint] = {}

    def trained(role: str, network: Denoiser, steps: int) -> Footprint:
        parts = tuple((n, tuple(p.shape)) for n, p in network.named_parameters())
        key = (precision.of(role), steps, type(network), parts)
        if key not in measured:
            measured[key] = measure_footprint(
                network,
                condition,
                train=True,
                steps=steps,
                dtype=precision.of(role),
                activation_checkpointing=work.activation_checkpointing,
            )
        return measured[key]

    frozen_teacher = measure_footprint(teacher, condition, train=False, dtype=precision.compute)
    roles: list[PhaseFootprints] = []
    for k, phase in enumerate(work.plan):
        steps = work.recorded_steps(k)
        generator = trained("generator", init.expert(teacher, phase, []), steps)
        fake = trained("fake", init.fake(teacher, phase), 1)
        frozen = tuple(r.generator for r in roles)
        roles.append(
            PhaseFootprints(teacher=frozen_teacher, generator=generator, fake=fake, frozen=frozen)
        )
    return tuple(roles)


@checked
def plan_roles(
    roles: Sequence[PhaseFootprints],
    work: Workload,
    *,
    name: str = "",
    cluster: Cluster,
    precision: Precision,
    offload: Offload | None = None,
    checkpoints: int = 2,
) -> RunPlan:
    """Plans a run from the footprints of its networks.

    Args:
        roles: The footprints of the networks, by phase.
        work: The settings of a cycle, as the networks were measured.
        name: The name in the tables.
        cluster: The GPUs and their links.
        precision: The precision at which the networks were measured.
        offload: The roles in CPU memory; none by default.
        checkpoints: Checkpoints that are kept.

    Returns:
        The plan.

    Raises:
        ValueError: If no degrees divide batch, heads and tokens.
    """
    choices = search_degrees(roles, work, cluster=cluster, precision=precision, offload=offload)
    phases = range(len(work.plan))
    return RunPlan(
        name=name,
        work=work,
        roles=tuple(roles),
        passes=tuple(cycle_passes(work, k) for k in phases),
        flops=tuple(flops_of(roles[k], work, k) for k in phases),
        choices=tuple(choices),
        cluster=cluster,
        precision=precision,
        offload=offload or Offload(),
        checkpoints=checkpoints,
    )


def _summary(network: Footprint) -> dict[str, Any]:
    return {
        "parameters": network.parameters,
        "units": len(network.units),
        "tokens": network.tokens,
        "heads": network.heads,
        "forward_flops": network.flops,
        "backward_flops": network.backward_flops,
        "recomputed_flops": network.recomputed_flops,
    }
