"""What one rank sends to others in a cycle, and the operations it runs.

Sizes are those of ring collectives over :math:`n` ranks: :math:`(n - 1) / n` of the whole for an
all-gather, a reduce-scatter or an all-to-all, and twice that for an all-reduce.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from pdmd.distributed.degrees import Degrees
from pdmd.planning.evaluations import Work, calls
from pdmd.planning.footprint import Footprint
from pdmd.planning.memory import Precision, Roles
from pdmd.training.monitoring.accounting import ROLES

__all__ = ["Traffic", "flops_of", "traffic_of"]


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes that one rank sends in a cycle.

    Attributes:
        all_gather: Parameters, before every forward and every backward pass.
        reduce_scatter: Gradients, to their shards.
        all_reduce: Gradients, over the copies of the shards.
        tp_all_reduce: Activations of tensor parallelism.
        cp_all_to_all: Queries, keys, values and outputs of context parallelism.
    """

    all_gather: float
    reduce_scatter: float
    all_reduce: float
    tp_all_reduce: float
    cp_all_to_all: float

    @property
    def total(self) -> float:
        """All bytes."""
        return sum(dataclasses.astuple(self))


def traffic_of(
    roles: Roles,
    work: Work,
    index: int,
    degrees: Degrees,
    precision: Precision,
) -> Traffic:
    """Returns what one rank sends in a cycle of a phase.

    Args:
        roles: The networks.
        work: What the training does.
        index: The phase, from 0.
        degrees: How the ranks share it.
        precision: In how many bytes parameters are gathered; gradients are reduced in float32.
    """
    batch = work.batch_size / degrees.batches
    tp, cp, shards = degrees.tp, degrees.cp, degrees.shards
    sharded, replicated = _ring(shards), 2 * _ring(degrees.dp_replicate)
    gather = reduce = copies = tensor = sequence = 0.0
    for role, network, forward, backward in _shares(roles, work, index):
        passes = forward / work.evaluations if role == "teacher" else forward
        local, (units, root) = network.local(tp), network.gathered(tp)
        wanted = passes * (units + root) + backward * units
        gather += sharded * precision.compute.itemsize * wanted
        reduce += sharded * 4 * backward * local
        copies += replicated * 4 * backward * local / shards
        again = backward if work.activation_checkpointing else 0.0
        sums = (forward + again) * network.reduced + backward * network.entering
        tensor += 2 * _ring(tp) * batch / cp * sums
        swaps = (forward + again + backward) * network.attention
        sequence += _ring(cp) * batch / cp / tp * swaps
    return Traffic(
        all_gather=gather,
        reduce_scatter=reduce,
        all_reduce=copies,
        tp_all_reduce=tensor,
        cp_all_to_all=sequence,
    )


def flops_of(roles: Roles, work: Work, index: int) -> dict[str, float]:
    """Returns the operations of a cycle by role, over all ranks.

    Args:
        roles: The networks.
        work: What the training does.
        index: The phase, from 0.
    """
    out: dict[str, float] = {role: 0.0 for role in ROLES}
    for role, network, forward, backward in _shares(roles, work, index):
        back = network.backward_flops + work.activation_checkpointing * network.recomputed_flops
        out[role] += work.batch_size * (forward * network.flops + backward * back)
    return out


def _shares(roles: Roles, work: Work, index: int) -> Iterator[tuple[str, Footprint, float, float]]:
    """Yields every network with its role, and its forward and backward passes in a cycle."""
    number = calls(work, index)
    networks = {"teacher": roles.teacher, "fake": roles.fake, "generator": roles.generator}
    for role, network in networks.items():
        yield role, network, number.forward[role], number.backward[role]
    for forward, network in zip(number.frozen, roles.frozen, strict=True):
        yield "frozen", network, forward, 0.0


def _ring(n: int) -> float:
    return (n - 1) / n
