"""Perceptual distance between samples of one prompt, by the LPIPS package.

References:
    Zhang et al., arXiv:1801.03924.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from itertools import combinations
from typing import Any, Self

import torch
from torch import Tensor

from pdmd.evaluation.perceptual.measurements import (
    DecodedSamples,
    Measurement,
    MeasurementPlace,
)
from pdmd.extras import require

__all__ = ["PairwiseLpips"]

PAIRS = 8
"""Pairs of pictures that are evaluated at once."""


class PairwiseLpips(Measurement):
    """The mean LPIPS distance of each sample to the others of its prompt; higher is more diverse.

    Args:
        distance: Maps two batches of images in [-1, 1], of shape :math:`(B, 3, H, W)`, to
            distances, of :math:`B` values in any shape.
        frames: Frames of a video, at equal distances, each compared with the same of the other.
    """

    default = "alex"

    def __init__(self, distance: Callable[[Tensor, Tensor], Tensor], frames: int = 4) -> None:
        self.distance, self.frames = distance, frames

    @classmethod
    def load(cls, source: str, place: MeasurementPlace) -> Self:
        if source not in ("alex", "vgg", "squeeze"):
            raise ValueError(f"LPIPS has the networks alex, vgg and squeeze, got {source!r}")
        why = "leave the metric 'lpips' out"
        require("perceptual", "lpips", "torchvision", alternative=why)
        package: Any = importlib.import_module("lpips")
        network = package.LPIPS(net=source, verbose=False).to(place.device)
        return cls(network.eval().requires_grad_(False))

    @torch.inference_mode()
    def __call__(self, samples: DecodedSamples) -> Tensor:
        """Returns distances, float32, with shape :math:`(P S, 1)`.

        Raises:
            ValueError: If there is one sample of a prompt only.
        """
        if samples.seeds < 2:
            raise ValueError("LPIPS compares samples of a prompt; draw 2 seeds or more")
        frames = samples.frames(self.frames)
        if frames.shape[2] == 1:
            frames = frames.expand(-1, -1, 3, -1, -1)
        count, each = samples.seeds, frames.shape[1]
        pairs = list(combinations(range(count), 2))
        rows: list[Tensor] = []
        for group in frames.split(count):
            total = torch.zeros(count, device=group.device)
            for i in range(0, len(pairs), PAIRS):
                first, second = zip(*pairs[i : i + PAIRS], strict=True)
                a, b = (group[list(x)].flatten(0, 1).float() / 127.5 - 1 for x in (first, second))
                found = self.distance(a, b).float().reshape(-1, each).mean(1).to(total.device)
                for side in (first, second):
                    total.index_add_(0, torch.tensor(side, device=total.device), found)
            rows.append(total / (count - 1))
        return torch.cat(rows)[:, None]
