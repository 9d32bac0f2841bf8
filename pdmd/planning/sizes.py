r"""Footprints at any size of a sample from those at three sizes.

With fused attention, which stores no matrix of weights, live bytes are affine in the number of
tokens :math:`n`, and FLOPs are a polynomial of degree two: :math:`a + b n + c n^2`, with
attention in the last term. Tables of positions outside the units are affine as well. Networks
measured at three sizes determine any other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from pdmd.arguments import checked
from pdmd.planning.footprint import Footprint, ParameterGroup
from pdmd.planning.memory import PhaseFootprints
from pdmd.planning.recording import MemoryTimeline

__all__ = ["resize", "resize_roles"]

_AFFINE = ("buffers", "attention", "row_outputs", "column_inputs", "latents")
_QUADRATIC = ("flops", "backward_flops", "recomputed_flops")


@checked
def resize(measured: Sequence[Footprint], tokens: int) -> Footprint:
    """Returns the footprint of a network for samples of another size.

    Args:
        measured: The footprints at three sizes, smallest first.
        tokens: The tokens of a sample of the size in question.

    Raises:
        ValueError: If there are not three sizes that increase, or the computation at them is not
            the same.
    """
    sizes = [one.tokens for one in measured]
    if len(sizes) != 3 or not sizes[0] < sizes[1] < sizes[2]:
        raise ValueError(f"three sizes increase, got {sizes} tokens")
    first, _, last = measured
    factor = (tokens - sizes[0]) / (sizes[2] - sizes[0])
    basis = [
        (tokens - sizes[j]) * (tokens - sizes[k]) / (sizes[i] - sizes[j]) / (sizes[i] - sizes[k])
        for i, j, k in ((0, 1, 2), (1, 0, 2), (2, 0, 1))
    ]

    def timeline(a: MemoryTimeline, b: MemoryTimeline) -> MemoryTimeline:
        if a.fixed.shape != b.fixed.shape:
            raise ValueError(
                f"the computation at {sizes[0]} and {sizes[2]} tokens has {len(a.fixed)} and "
                f"{len(b.fixed)} allocations; measure sizes at which they are as many"
            )
        return MemoryTimeline(
            fixed=a.fixed + factor * (b.fixed - a.fixed),
            slope=a.slope + factor * (b.slope - a.slope),
            forward_end=a.forward_end,
        )

    def group(a: ParameterGroup, b: ParameterGroup) -> ParameterGroup:
        return ParameterGroup(
            whole=round(a.whole + factor * (b.whole - a.whole)),
            split=round(a.split + factor * (b.split - a.split)),
        )

    values: dict[str, float] = {}
    for name in _AFFINE:
        a, b = getattr(first, name), getattr(last, name)
        values[name] = a + factor * (b - a)
    for name in _QUADRATIC:
        points = zip(basis, measured, strict=True)
        values[name] = sum(weight * getattr(one, name) for weight, one in points)
    return dataclasses.replace(
        first,
        tokens=tokens,
        root=group(first.root, last.root),
        base_root=group(first.base_root, last.base_root),
        inference_memory=timeline(first.inference_memory, last.inference_memory),
        training_memory=timeline(first.training_memory, last.training_memory),
        **values,  # type: ignore[arg-type]
    )


@checked
def resize_roles(measured: Sequence[PhaseFootprints], tokens: int) -> PhaseFootprints:
    """Returns the footprints of a phase's networks at another size, as :func:`resize` does."""
    frozen = zip(*(one.frozen for one in measured), strict=True)
    return PhaseFootprints(
        teacher=resize([one.teacher for one in measured], tokens),
        generator=resize([one.generator for one in measured], tokens),
        fake=resize([one.fake for one in measured], tokens),
        frozen=tuple(resize(list(networks), tokens) for networks in frozen),
    )
