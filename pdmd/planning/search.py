"""The search over degrees of parallelism."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pdmd.distributed.degrees import Degrees
from pdmd.planning.evaluations import Work
from pdmd.planning.memory import Precision, RankMemory, Roles, memory_of
from pdmd.planning.traffic import Traffic, traffic_of

__all__ = ["Choice", "degrees_for", "search"]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One way to share the work, in the phase that needs most.

    Attributes:
        degrees: The degrees of parallelism.
        memory: The memory of a rank.
        traffic: What a rank sends in a cycle.
        phase: The phase whose memory is highest, from 0.
        fits: Whether the memory is enough.
    """

    degrees: Degrees
    memory: RankMemory
    traffic: Traffic
    phase: int
    fits: bool


def degrees_for(gpus: int, *, batch_size: int, heads: int, tokens: int) -> Iterator[Degrees]:
    """Yields all degrees whose product is the number of ranks and that divide what they share.

    Args:
        gpus: The number of ranks.
        batch_size: Samples in each rollout, which data parallelism divides.
        heads: Attention heads, which tensor and context parallelism divide; 0 where they do not
            apply.
        tokens: The length of the sequence, which context parallelism divides.
    """
    for tp in _divisors(gpus):
        for cp in _divisors(gpus // tp):
            if tp * cp > 1 and (not heads or heads % (tp * cp) or tokens % cp):
                continue
            for dp_shard in _divisors(gpus // tp // cp):
                dp_replicate = gpus // tp // cp // dp_shard
                if batch_size % (dp_shard * dp_replicate) == 0:
                    yield Degrees(dp_replicate=dp_replicate, dp_shard=dp_shard, cp=cp, tp=tp)


def search(
    roles: Sequence[Roles],
    work: Work,
    *,
    gpus: int,
    memory: float,
    precision: Precision,
) -> list[Choice]:
    """Finds what fits.

    Args:
        roles: The networks of every phase.
        work: What the training does.
        gpus: The number of ranks.
        memory: The memory of each, in bytes.
        precision: In how many bytes parameters are held and computed with.

    Returns:
        Every choice of degrees; those that fit first, by what a rank sends and then by memory.

    Raises:
        ValueError: If no degrees divide the work.
    """
    network = roles[0].generator
    splits = any(unit.split for unit in (*network.units, *network.under))
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
            f"{gpus} ranks cannot share batches of {work.batch_size} samples, "
            f"{network.heads} heads and a sequence of {network.tokens}: none of their products "
            "divides these; choose another number of ranks or batch size"
        )
    return sorted(choices, key=lambda c: (not c.fits, c.traffic.total, c.memory.total))


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
