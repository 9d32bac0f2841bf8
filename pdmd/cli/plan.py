"""The command `pdmd plan`: the cost of a configuration and the devices it fits on."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from pdmd.cli.arguments import parse_config
from pdmd.cli.config import DistillConfig, TeacherConfig
from pdmd.distillation.initializers import CopyInitializer, FromDenoiser, FromNetwork
from pdmd.distributed.offload import Offload
from pdmd.files import local_path, write_file
from pdmd.objectives import (
    DistributionMatching,
    FDivergence,
    NoiseSensitivity,
    Objective,
    OnlyPhases,
    Repulsion,
    WeightedSum,
)
from pdmd.planning.clusters import Cluster
from pdmd.planning.depth import deepen_roles
from pdmd.planning.evaluations import Workload
from pdmd.planning.memory import EIGHT_BIT, PhaseFootprints, Precision
from pdmd.planning.run_plan import RunPlan, measure_roles, plan_roles
from pdmd.teachers.base import Teacher, import_plugins, outline_arguments
from pdmd.teachers.families.released import equal_blocks, released_arguments
from pdmd.teachers.packaged.pretraining import network_arguments

__all__ = [
    "MeasuredRun",
    "measure_run",
    "outlined",
    "plan_command",
    "plan_run",
    "timestep_samples",
]

SHALLOW = (2, 3)
"""Blocks of the networks from which deep ones are planned."""

_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class PlanOptions:
    """The devices to plan for."""

    gpus: int = 1
    """Number of GPUs."""
    memory: float = 80.0
    """Memory of each GPU, in GiB."""
    node_gpus: int = 8
    """GPUs of a node."""
    node_memory: float = 1024.0
    """CPU memory of a node, in GiB."""
    rate: float = 0.4
    """PFLOP/s that a GPU achieves."""
    node: float = 450.0
    """GB/s that a GPU sends to others of its node."""
    network: float = 50.0
    """GB/s that a node sends to others: 50 is one card of 400 Gbit/s, 400 is eight."""
    host: float = 50.0
    """GB/s between a GPU and the CPU's memory."""
    show: int = 10
    """Number of parallelism degrees to list."""
    json: str = ""
    """Also write all numbers to this JSON file."""

    def cluster(self) -> Cluster:
        """Returns the GPUs and their links.

        Raises:
            ValueError: If a number is out of its range.
        """
        return Cluster(
            gpus=self.gpus,
            memory=self.memory,
            node_gpus=self.node_gpus,
            node_memory=self.node_memory,
            flops=self.rate * 1e15,
            node_bandwidth=self.node * 1e9,
            network_bandwidth=self.network * 1e9,
            host_bandwidth=self.host * 1e9,
        )


def plan_command(words: list[str]) -> int:
    """Estimates memory, FLOPs and traffic of a run from its networks, built without weights."""
    import json

    from pdmd.planning import format_plan

    parsed = parse_config(words, "plan", PlanOptions(), plan_command.__doc__)
    options: PlanOptions = parsed.options
    if options.show < 1:
        raise ValueError(f"--show is at least 1, got {options.show}")
    if options.json and Path(options.json).suffix != ".json":
        raise ValueError(f"--json ends in .json, got {options.json!r}")
    local_path(options.json, "a plan")
    plan = plan_run(parsed.config, options.cluster())
    if options.json:
        out = local_path(options.json, "a plan")
        out.parent.mkdir(parents=True, exist_ok=True)
        write_file(out, json.dumps(plan.to_dict(), indent=2) + "\n")
    print(format_plan(plan, show=options.show))
    return 0


def plan_run(config: DistillConfig, cluster: Cluster | None = None) -> RunPlan:
    """Plans a configured run without training, and without loading weights where possible.

    Precision, activation checkpointing, offloading and the bits of moments are those of the
    configuration. An adaptive number of
    fake updates is planned at its maximum.

    Args:
        config: The configuration.
        cluster: The GPUs and their links; one GPU of 80 GiB by default.

    Returns:
        The plan.

    Raises:
        ValueError: If a value is out of its range, or no degrees divide the work.
    """
    return measure_run(config).on(cluster or Cluster())


@dataclass(frozen=True, kw_only=True, eq=False)
class MeasuredRun:
    """A configured run, measured to be planned on several clusters.

    Attributes:
        config: The configuration.
        work: The settings of a cycle.
        roles: The footprints of the networks, by phase.
        precision: The dtypes of computation and storage.
        sizes: If samples have several sizes: the share of each in the batches, and its
            measurement. Those above are then of the first.
    """

    config: DistillConfig
    work: Workload
    roles: tuple[PhaseFootprints, ...]
    precision: Precision
    sizes: tuple[tuple[float, MeasuredRun], ...] = ()

    def on(self, cluster: Cluster) -> RunPlan:
        """Plans the run.

        Args:
            cluster: The GPUs and their links.

        Raises:
            ValueError: If no degrees divide the work.
        """
        if self.sizes:
            return RunPlan.of_sizes([(share, run.on(cluster)) for share, run in self.sizes])
        config = self.config
        return plan_roles(
            self.roles,
            self.work,
            name=config.teacher.name,
            cluster=cluster,
            precision=self.precision,
            offload=Offload(**dict.fromkeys(config.parallel.offload, True)),
            checkpoints=config.train.checkpoint_keep,
        )


def measure_run(config: DistillConfig) -> MeasuredRun:
    """Measures the networks of a configured run; see :func:`plan_run`.

    A listed model of equal blocks is measured with two and three of them
    (:mod:`pdmd.planning.depth`), in a fraction of the time.

    Args:
        config: The configuration.

    Raises:
        ValueError: If a value is out of its range.
    """
    config.check()
    if config.parallel.activation_checkpointing == "selective":
        raise ValueError(
            "the memory of selective activation checkpointing cannot be planned; plan with "
            "parallel.activation_checkpointing = "
            "'none', which needs more memory, or 'full', which needs less"
        )
    train = config.train
    for key, value, planned in (
        ("curriculum", train.curriculum, "progressive"),
        ("fake_scores", train.fake_scores, "one"),
    ):
        if value != planned:
            raise ValueError(
                f"train.{key} = {value!r} cannot be planned; plan with train.{key} = {planned!r}"
            )
    if config.teacher.buckets:
        buckets = config.teacher.build_buckets(outlined(config.teacher))
        sized = [config.teacher.at_bucket(table) for table in config.teacher.buckets]
        runs = [_measured_size(dataclasses.replace(config, teacher=one)) for one in sized]
        shares = [buckets.probability(bucket) for bucket in buckets]
        return dataclasses.replace(runs[0], sizes=tuple(zip(shares, runs, strict=True)))
    return _measured_size(config)


def _measured_size(config: DistillConfig) -> MeasuredRun:
    depth = equal_blocks(config.teacher.name, config.teacher.arguments)
    if config.student.given:  # whose network does not deepen with the teacher's
        return _measured(config, config.teacher)
    if depth <= SHALLOW[1]:
        return _measured(config, config.teacher)
    few, many = (
        _measured(
            config,
            dataclasses.replace(
                config.teacher, arguments={**config.teacher.arguments, "num_layers": layers}
            ),
        )
        for layers in SHALLOW
    )
    pairs = zip(few.roles, many.roles, strict=True)
    roles = tuple(deepen_roles(a, b, SHALLOW, depth) for a, b in pairs)
    return dataclasses.replace(many, config=config, roles=roles)


def _measured(config: DistillConfig, teacher_config: TeacherConfig) -> MeasuredRun:
    train, types = config.train, config.train.types.build(config.parallel.precision)
    teacher = outlined(teacher_config)
    condition = teacher.encode(list(teacher.prompts)[:1])
    guided = set(config.teacher.guidance) != {1.0}
    if guided and condition is None:
        raise ValueError(
            f"{config.teacher.name} has no conditions, so guidance does not apply; use "
            "teacher.guidance = 1"
        )
    plan = config.plan.build(teacher.schedule)
    work = Workload(
        plan=plan,
        truncation=train.build_truncation(),
        batch_size=train.batch_size,
        fake_updates=tuple(p.fake_updates for p in train.phases(plan)),
        accumulate=train.accumulate,
        fake_accumulate=train.fake_accumulate,
        timestep_samples=timestep_samples(config.objective.build()[0], len(plan)),
        evaluations=2 if guided else 1,
        masked=condition is not None and "mask" in condition,
        fake_updates_per_rollout=train.fake_updates_per_rollout,
        phase_inputs=train.build_phase_inputs(plan),
        updates=tuple(train.updates_of(plan)),
        activation_checkpointing=config.parallel.activation_checkpointing == "full",
    )
    adapters = config.lora.build()
    origin: CopyInitializer | None = None
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
            arguments=config.network.arguments,
        )
        with torch.device("meta"):
            origin = FromDenoiser(config.network.build(arguments, teacher.schedule))
    elif config.student.given:
        origin = FromNetwork(config.student.sketch(teacher))
    initializer = train.build_initializer(origin, adapters)
    precision = Precision(
        compute=types.teacher,
        frozen=types.teacher,
        generator=types.generator,
        fake=types.fake,
        average=types.average,
        moment_bytes=EIGHT_BIT if train.adam_bits == 8 else 4.0,
    )
    roles = measure_roles(teacher, initializer, condition, work, precision=precision)
    return MeasuredRun(config=config, work=work, roles=roles, precision=precision)


def timestep_samples(objective: Objective, phases: int) -> int:
    """Returns the times at which a generator objective compares a sample with the teacher.

    Args:
        objective: The objective. Terms that evaluate networks in another way than distribution
            matching are not planned; they are logged.
        phases: Number of phases.

    Returns:
        The largest number of any phase.
    """
    numbers = [0] * phases
    for _, term in objective.terms if isinstance(objective, WeightedSum) else ((1.0, objective),):
        inner = term.objective if isinstance(term, OnlyPhases) else term
        if isinstance(inner, DistributionMatching | FDivergence):
            times = getattr(inner, "timestep_samples", 1)
            for number in term.phases if isinstance(term, OnlyPhases) else range(1, phases + 1):
                numbers[number - 1] += times
        elif not isinstance(inner, NoiseSensitivity | Repulsion):
            _log.warning("the network evaluations of %s are not planned", inner.name)
    return max(numbers)


def outlined(config: TeacherConfig) -> Teacher:
    """Builds a teacher without guidance, on the meta device where its constructor allows that.

    Of a model on the hub that is listed (:mod:`pdmd.teachers.families.released`), only sizes are
    needed, which ship: neither configurations nor embeddings are read.

    Args:
        config: The teacher.

    Raises:
        ValueError: If it cannot be built.
    """
    import_plugins(config.plugins)
    outline = outline_arguments(config.name)
    known = released_arguments(config.name, config.arguments)
    arguments = {**(config.arguments if known is None else known), **outline}
    plain = dataclasses.replace(
        config,
        guidance=(1.0,),
        guidance_interval=(0.0, 1.0),
        negative_prompt="",
        arguments=arguments,
    )
    if outline:
        return plain.build()
    try:
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")  # that weights are not copied is intended
            teacher = plain.build()
        if any(True for _ in teacher.parameters()):
            return teacher
    except (ValueError, NotImplementedError, RuntimeError):
        pass  # its constructor computes, or its arguments do not fit
    return plain.build()
