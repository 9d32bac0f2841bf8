"""Boundaries: the time at which a pipeline of two networks changes from one to the other."""

from __future__ import annotations

import numpy as np

from pdmd.diffusion.routers import IntervalRouter

__all__ = ["boundary_router"]


def boundary_router(ratio: float) -> IntervalRouter:
    """Routes between two networks as diffusers' pipelines do: the noisier one serves the boundary.

    Routers of this library assign a boundary to the less noisy side, so theirs is the float32 just
    below; every float32 time is then routed as in the pipeline.

    Args:
        ratio: The pipeline's ``boundary_ratio``, in (0, 1).

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(ratio, int | float) or not 0 < ratio < 1:
        raise ValueError(f"a boundary ratio must be a number in (0, 1), got {ratio!r:.40}")
    below = np.nextafter(np.float32(ratio), np.float32(0))
    return IntervalRouter((1.0, float(below), 0.0))
