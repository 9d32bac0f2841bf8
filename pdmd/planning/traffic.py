"""Communication and FLOPs of one cycle.

With ring collectives over :math:`n` ranks, a rank sends :math:`(n - 1) / n` of the tensor in an
all-gather, a reduce-scatter or an all-to-all, and twice that in an all-reduce.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from pdmd.arguments import checked
from pdmd.distributed.degrees import Degrees
from pdmd.distributed.offload import Offload
from pdmd.planning.evaluations import Workload, cycle_passes
from pdmd.planning.footprint import Footprint
from pdmd.planning.memory import PhaseFootprints, Precision
from pdmd.training.monitoring.accounting import ROLES

__all__ = ["Traffic", "flops_of", "traffic_of"]


@checked
@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes that one rank sends to others, and copies to or from the CPU, in a cycle.

    Attributes:
        all_gather: Parameters, before every forward and every backward pass.
        reduce_scatter: Gradients, over shards.
        all_reduce: Gradients, over replicas.
        tp_all_reduce: Activations, under tensor parallelism.
        cp_all_to_all: Queries, keys, values and outputs, under context parallelism.
        host_copies: Copies of offloaded roles between the GPU and the CPU's memory.
    """

    all_gather: float
    reduce_scatter: float
    all_reduce: float
    tp_all_reduce: float
    cp_all_to_all: float
    host_copies: float = 0.0

    @property
    def total(self) -> float:
        """All bytes sent to other ranks."""
        return sum(dataclasses.astuple(self)) - self.host_copies


@checked
def traffic_of(
    roles: PhaseFootprints,
    work: Workload,
    index: int,
    degrees: Degrees,
    precision: Precision,
    offload: Offload | None = None,
) -> Traffic:
    """Returns the bytes that one rank sends in a cycle of a phase.

    Args:
        roles: The footprints of the phase's networks.
        work: The settings of a cycle.
        index: The phase, from 0.
        degrees: The degrees of parallelism.
        precision: The dtype of gathered parameters; gradients are reduced in float32.
        offload: The roles in CPU memory; none by default.
    """
    batch = work.batch_size / degrees.batches
    tp, cp, shards = degrees.tp, degrees.cp, degrees.shards
    sharded, replicated = _ring(shards), 2 * _ring(degrees.dp_replicate)
    gather = reduce = copies = tensor = sequence = 0.0
    joined = work.evaluations / work.teacher_calls(batch, sharded=degrees.ranks > 1)
    for role, network, forward, backward in _passes(roles, work, index):
        passes = forward / joined if role == "teacher" else forward
        local, (units, root) = network.evaluated(tp), network.gathered(tp)
        gathered = passes * (units + root) + backward * units
        gather += sharded * precision.of(role).itemsize * gathered
        reduce += sharded * 4 * backward * local
        copies += replicated * 4 * backward * local / shards
        again = backward if work.activation_checkpointing else 0.0
        sums = (forward + again) * network.row_outputs + backward * network.column_inputs
        tensor += 2 * _ring(tp) * batch / cp * sums
        swaps = (forward + again + backward) * network.attention
        sequence += _ring(cp) * batch / cp / tp * swaps
    return Traffic(
        all_gather=gather,
        reduce_scatter=reduce,
        all_reduce=copies,
        tp_all_reduce=tensor,
        cp_all_to_all=sequence,
        host_copies=_host_copies(roles, work, index, degrees, precision, offload or Offload()),
    )


def _host_copies(
    roles: PhaseFootprints,
    work: Workload,
    index: int,
    degrees: Degrees,
    precision: Precision,
    offload: Offload,
) -> float:
    """Returns the bytes that a rank copies: weights in every pass, averages and moments twice."""
    shards, tp = degrees.shards, degrees.tp
    copied, batch = 0.0, work.batch_size / degrees.batches
    joined = work.evaluations / work.teacher_calls(batch, sharded=degrees.ranks > 1)
    for role, network, forward, backward in _passes(roles, work, index):
        passes = forward / joined if role == "teacher" else forward
        frozen = network.local_base(tp) if network.base_units else 0.0
        if role == "teacher" or role == "frozen" and offload.experts:
            frozen += network.evaluated(tp)
        if not (offload.experts if role == "frozen" else offload.teacher):
            continue
        copied += (passes + backward) * precision.frozen.itemsize * frozen / shards
    own, fake = roles.generator.local(tp) / shards, roles.fake.local(tp) / shards
    copied += 2 * precision.average.itemsize * own * offload.averages
    moments = 2 * precision.moment_bytes * (own + work.fake_updates_of(index) * fake)
    return copied + 2 * moments * offload.optimizers


@checked
def flops_of(roles: PhaseFootprints, work: Workload, index: int) -> dict[str, float]:
    """Returns the FLOPs of a cycle by role, over all ranks.

    Args:
        roles: The footprints of the phase's networks.
        work: The settings of a cycle.
        index: The phase, from 0.
    """
    out: dict[str, float] = {role: 0.0 for role in ROLES}
    for role, network, forward, backward in _passes(roles, work, index):
        back = network.backward_flops + work.activation_checkpointing * network.recomputed_flops
        out[role] += work.batch_size * (forward * network.flops + backward * back)
    return out


def _passes(
    roles: PhaseFootprints, work: Workload, index: int
) -> Iterator[tuple[str, Footprint, float, float]]:
    """Yields every network with its role, and its forward and backward passes in a cycle."""
    passes = cycle_passes(work, index)
    networks = {"teacher": roles.teacher, "fake": roles.fake, "generator": roles.generator}
    for role, network in networks.items():
        yield role, network, passes.forward[role], passes.backward[role]
    for forward, network in zip(passes.frozen, roles.frozen, strict=True):
        yield "frozen", network, forward, 0.0


def _ring(n: int) -> float:
    return (n - 1) / n
