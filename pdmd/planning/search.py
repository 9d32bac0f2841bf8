"""The search over degrees of parallelism."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pdmd.distributed.degrees import Degrees
from pdmd.planning.evaluations import Workload
from pdmd.planning.memory import PhaseFootprints, Precision, RankMemory, memory_of
from pdmd.planning.traffic import Traffic, traffic_of

__all__ = ["Choice", "degrees_for", "search_degrees"]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One choice of degrees, with its memory and traffic.

    Attributes:
        degrees: The degrees of parallelism.
        memory: The peak memory of a rank, in the phase with the highest.
        traffic: The bytes a rank sends in a cycle, in the phase with the most.
        phase: The phase with the highest peak memory, from 0.
        fits: Whether the peak memory fits in the GPU.
    """

    degrees: Degrees
    memory: RankMemory
    traffic: Traffic
    phase: int
    fits: bool


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


def search_degrees(
    roles: Sequence[PhaseFootprints],
    work: Workload,
    *,
    gpus: int,
    memory: float,
    precision: Precision,
) -> list[Choice]:
    """Evaluates all degrees of parallelism and sorts them.

    Args:
        roles: The footprints of the networks, by phase.
        work: The settings of a cycle.
        gpus: The number of ranks.
        memory: The memory of each, in bytes.
        precision: The dtypes of computation and storage.

    Returns:
        Every choice of degrees; those that fit first, sorted by traffic and then by memory.

    Raises:
        ValueError: If no degrees divide batch, heads and tokens.
    """
    network = roles[0].generator
    splits = any(unit.split for unit in (*network.units, *network.base_units))
    choices = []
    for degrees in degrees_for(
        gpus,
        batch_size=work.batch_size,
        heads=network.heads if network.attention else 0,
        tokens=network.tokens,
    ):
        if degrees.tp > 1 and not splits:
            continue
        at = [memory_of(r, work, degrees, precision) for r in roles]
        sent = [traffic_of(r, work, k, degrees, precision) for k, r in enumerate(roles)]
        phase = max(range(len(at)), key=lambda k: at[k].total)
        choices.append(
            Choice(
                degrees=degrees,
                memory=at[phase],
                traffic=max(sent, key=lambda s: s.total),
                phase=phase,
                fits=at[phase].total <= memory,
            )
        )
    if not choices:
        raise ValueError(
            f"no degrees of parallelism for {gpus} ranks divide a batch of {work.batch_size} "
            f"samples, {network.heads} heads and {network.tokens} tokens; choose another number "
            "of ranks or batch size"
        )
    return sorted(choices, key=lambda c: (not c.fits, c.traffic.total, c.memory.total))


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
