"""The search over degrees of parallelism."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pdmd.arguments import checked
from pdmd.distributed.degrees import Degrees
from pdmd.distributed.offload import Offload
from pdmd.planning.clusters import Cluster
from pdmd.planning.duration import CycleSeconds, seconds_of
from pdmd.planning.evaluations import Workload
from pdmd.planning.memory import PhaseFootprints, Precision, RankMemory, memory_of
from pdmd.planning.traffic import Traffic, flops_of, traffic_of

GIB = 2**30

__all__ = ["Choice", "degrees_for", "search_degrees"]


@checked
@dataclass(frozen=True, kw_only=True)
class Choice:
    """One choice of degrees, with its memory and traffic.

    Attributes:
        degrees: The degrees of parallelism.
        memory: The peak memory of a rank, in the phase with the highest.
        traffic: The bytes a rank sends in a cycle, in the phase with the most.
        phase: The phase with the highest peak memory, from 0.
        seconds: The seconds of a cycle, by phase.
        host: The CPU memory of a node that offloaded roles take, in bytes.
        fits: Whether the peak memory fits in the GPU, and offloaded roles in the node's memory.
    """

    degrees: Degrees
    memory: RankMemory
    traffic: Traffic
    phase: int
    seconds: tuple[CycleSeconds, ...]
    host: float
    fits: bool

    @property
    def slowest(self) -> CycleSeconds:
        """The seconds of the longest cycle."""
        return max(self.seconds, key=lambda s: s.total)


@checked
def degrees_for(gpus: int, *, batch_size: int, heads: int, tokens: int) -> Iterator[Degrees]:
    """Yields all degrees whose product is the number of ranks and that divide their dimension.

    Args:
        gpus: The number of ranks.
        batch_size: Samples in each rollout, sharded by data parallelism.
        heads: Attention heads, sharded by tensor and context parallelism; 0 disables both.
        tokens: The sequence length, sharded by context parallelism.
    """
    for tp in _divisors(gpus):
        for cp in _divisors(gpus // tp):
            if tp * cp > 1 and (not heads or heads % (tp * cp) or tokens % cp):
                continue
            for dp_shard in _divisors(gpus // tp // cp):
                dp_replicate = gpus // tp // cp // dp_shard
                if batch_size % (dp_shard * dp_replicate) == 0:
                    yield Degrees(dp_replicate=dp_replicate, dp_shard=dp_shard, cp=cp, tp=tp)


@checked
def search_degrees(
    roles: Sequence[PhaseFootprints],
    work: Workload,
    *,
    cluster: Cluster,
    precision: Precision,
    offload: Offload | None = None,
) -> list[Choice]:
    """Evaluates all degrees of parallelism and sorts them.

    Args:
        roles: The footprints of the networks, by phase.
        work: The settings of a cycle.
        cluster: The GPUs and their links.
        precision: The dtypes of computation and storage.
        offload: The roles in CPU memory; none by default.

    Returns:
        Every choice of degrees, without tensor parallelism for moments in 8 bits, which do not
        support it; those that fit first, sorted by the seconds of the longest cycle,
        then by traffic and memory.

    Raises:
        ValueError: If no degrees divide batch, heads and tokens.
    """
    network = roles[0].generator
    splits = any(unit.split for unit in (*network.units, *network.base_units))
    choices = []
    flops = [sum(flops_of(r, work, k).values()) for k, r in enumerate(roles)]
    for degrees in degrees_for(
        cluster.gpus,
        batch_size=work.batch_size,
        heads=network.heads if network.attention else 0,
        tokens=network.tokens,
    ):
        if degrees.tp > 1 and (not splits or precision.moment_bytes < 4):  # no 8 bits with tp
            continue
        at = [memory_of(r, work, degrees, precision, offload) for r in roles]
        sent = [traffic_of(r, work, k, degrees, precision, offload) for k, r in enumerate(roles)]
        phase = max(range(len(at)), key=lambda k: at[k].total)
        host = max(m.host for m in at) * cluster.gpus_on_node
        choices.append(
            Choice(
                degrees=degrees,
                memory=at[phase],
                traffic=max(sent, key=lambda s: s.total),
                phase=phase,
                seconds=tuple(
                    seconds_of(f, s, degrees, cluster) for f, s in zip(flops, sent, strict=True)
                ),
                host=host,
                fits=at[phase].total <= cluster.memory * GIB and host <= cluster.node_memory * GIB,
            )
        )
    if not choices:
        raise ValueError(
            f"no degrees of parallelism for {cluster.gpus} ranks divide a batch of "
            f"{work.batch_size} samples, {network.heads} heads and {network.tokens} tokens; "
            "choose another number of ranks or batch size"
        )
    return sorted(
        choices,
        key=lambda c: (not c.fits, c.slowest.total, c.traffic.total, c.memory.total),
    )


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
