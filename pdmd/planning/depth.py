r"""Footprints of deep networks from two shallow ones.

A network of :math:`n` equal units has parameters, FLOPs and live bytes that are affine in
:math:`n`: every unit adds its weights, its gradients, what it keeps for the backward pass, and
the same operations. Two shallow networks of the same width determine a deep one, in a fraction
of the time. Of the live bytes the peaks within the first and the last units of the forward and
of the backward pass are kept.
"""

from __future__ import annotations

import dataclasses

from pdmd.planning.footprint import Footprint, ParameterGroup
from pdmd.planning.memory import PhaseFootprints
from pdmd.planning.recording import KINDS, MemoryTimeline

__all__ = ["deepen", "deepen_roles"]

_AFFINE = (
    "buffers",
    "flops",
    "backward_flops",
    "recomputed_flops",
    "attention",
    "row_outputs",
    "column_inputs",
)


def deepen(few: Footprint, many: Footprint, depths: tuple[int, int], depth: int) -> Footprint:
    """Returns the footprint of a network of more units.

    Args:
        few: The footprint at the first depth.
        many: The footprint at the second.
        depths: The two numbers of units, of a network or of each one of a routed denoiser.
        depth: The number of units of the network in question.

    Raises:
        ValueError: If the depths do not increase.
    """
    if not 0 < depths[0] < depths[1]:
        raise ValueError(f"two depths increase from at least 1, got {depths}")
    factor = (depth - depths[0]) / (depths[1] - depths[0])

    def at(first: float, second: float) -> float:
        return first + factor * (second - first)

    def timeline(first: MemoryTimeline, second: MemoryTimeline) -> MemoryTimeline:
        a, b = _peaks(first, second)
        return MemoryTimeline(
            fixed=first.fixed[a] + factor * (second.fixed[b] - first.fixed[a]),
            slope=first.slope[a] + factor * (second.slope[b] - first.slope[a]),
            forward_end=4,
        )

    return dataclasses.replace(
        many,
        root=_group(few.root, many.root, factor),
        base_root=_group(few.base_root, many.base_root, factor),
        units=_repeated(many.units, depths[1], depth),
        base_units=_repeated(many.base_units, depths[1], depth),
        idle=_idle(few.idle, many.idle, depths, depth),
        inference_memory=timeline(few.inference_memory, many.inference_memory),
        training_memory=timeline(few.training_memory, many.training_memory),
        **{name: at(getattr(few, name), getattr(many, name)) for name in _AFFINE},
    )


def deepen_roles(
    few: PhaseFootprints, many: PhaseFootprints, depths: tuple[int, int], depth: int
) -> PhaseFootprints:
    """Returns the footprints of a phase's networks with more units, as :func:`deepen` does."""
    pairs = zip(few.frozen, many.frozen, strict=True)
    return PhaseFootprints(
        teacher=deepen(few.teacher, many.teacher, depths, depth),
        generator=deepen(few.generator, many.generator, depths, depth),
        fake=deepen(few.fake, many.fake, depths, depth),
        frozen=tuple(deepen(a, b, depths, depth) for a, b in pairs),
    )


def _group(few: ParameterGroup, many: ParameterGroup, factor: float) -> ParameterGroup:
    return ParameterGroup(
        whole=round(few.whole + factor * (many.whole - few.whole)),
        split=round(few.split + factor * (many.split - few.split)),
    )


def _repeated(
    units: tuple[ParameterGroup, ...], shallow: int, depth: int
) -> tuple[ParameterGroup, ...]:
    """Repeats the last unit but one; the last may be smaller, without what no unit reads."""
    return (*units[:-1], *units[-2:-1] * (depth - shallow), *units[-1:])


def _idle(
    few: tuple[ParameterGroup, ...],
    many: tuple[ParameterGroup, ...],
    depths: tuple[int, int],
    depth: int,
) -> tuple[ParameterGroup, ...]:
    """Returns the groups of the networks that a call does not evaluate: a root and its units."""
    factor = (depth - depths[0]) / (depths[1] - depths[0])
    parts = len(many) // (1 + depths[1]) if len(many) != len(few) else len(many)
    shallow = [few[i * len(few) // parts : (i + 1) * len(few) // parts] for i in range(parts)]
    deep = [many[i * len(many) // parts : (i + 1) * len(many) // parts] for i in range(parts)]
    return tuple(
        group
        for a, b in zip(shallow, deep, strict=True)
        for group in (_group(a[0], b[0], factor), *_repeated(b[1:], depths[1], depth))
    )


def _peaks(few: MemoryTimeline, many: MemoryTimeline) -> tuple[list[int], list[int]]:
    """Returns corresponding moments of two timelines: the peaks of the first and last units.

    The shallow network's first half of a pass is the deep one's beginning, and its second half the
    deep one's end. Between them bytes are linear in the number of units passed.
    """
    first_gradient = len(KINDS) - 2
    shallow: list[int] = []
    deep: list[int] = []
    passes = [((0, t.forward_end + 1), (t.forward_end, len(t.fixed))) for t in (few, many)]
    live = many.fixed + many.slope
    for (low, high), (start, stop) in zip(*passes, strict=True):
        window = max((high - low) // 2, 1)
        for kinds in (first_gradient, len(KINDS)):
            total = live[:, :kinds].sum(1)
            early = int(total[start : start + window].argmax())
            late = int(total[stop - window : stop].argmax())
            shallow += [low + early, high - window + late]
            deep += [start + early, stop - window + late]
        shallow.append(high - 1)
        deep.append(stop - 1)
    return shallow, deep
