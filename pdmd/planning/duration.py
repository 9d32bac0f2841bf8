"""Seconds of a cycle, from its FLOPs and traffic at stated rates.

Parameters are gathered and gradients reduced while the network computes, and so are copies to and
from the CPU; the sums of tensor parallelism and the exchanges of context parallelism wait for
each other and the computation. A cycle takes the longest of what overlaps, plus what does not.
Time that is in neither, of the host or of small kernels, is part of the stated rate.
"""

from __future__ import annotations

from dataclasses import dataclass

from pdmd.arguments import checked
from pdmd.distributed.degrees import Degrees
from pdmd.planning.clusters import Cluster, Group
from pdmd.planning.traffic import Traffic

__all__ = ["CycleSeconds", "seconds_of"]


@checked
@dataclass(frozen=True, kw_only=True)
class CycleSeconds:
    """Seconds of one cycle.

    Attributes:
        computing: The FLOPs, at the cluster's rate.
        sharding: Parameters gathered, gradients reduced over shards and replicas.
        splitting: The sums of tensor parallelism and the exchanges of context parallelism.
        copying: Copies between the GPU and the CPU's memory.
    """

    computing: float
    sharding: float
    splitting: float
    copying: float

    @property
    def total(self) -> float:
        """Seconds of the cycle."""
        return max(self.computing, self.sharding, self.copying) + self.splitting


@checked
def seconds_of(flops: float, traffic: Traffic, degrees: Degrees, cluster: Cluster) -> CycleSeconds:
    """Returns the seconds of a cycle.

    Args:
        flops: FLOPs of the cycle, over all ranks.
        traffic: Bytes that one rank sends.
        degrees: The degrees of parallelism.
        cluster: The GPUs and their links.
    """
    tp, cp, shards = degrees.tp, degrees.cp, degrees.shards
    within = Group(size=shards, stride=tp)
    replicas = Group(size=degrees.dp_replicate, stride=tp * shards)
    return CycleSeconds(
        computing=flops / degrees.ranks / cluster.flops,
        sharding=cluster.ring_seconds(traffic.all_gather + traffic.reduce_scatter, within)
        + cluster.ring_seconds(traffic.all_reduce, replicas),
        splitting=cluster.ring_seconds(traffic.tp_all_reduce, Group(size=tp))
        + cluster.exchange_seconds(traffic.cp_all_to_all, Group(size=cp, stride=tp)),
        copying=traffic.host_copies / cluster.host_bandwidth,
    )
