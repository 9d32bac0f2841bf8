"""Features of images, and of frames of videos, by a pretrained vision network."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from pdmd.evaluation.features import FeatureExtractor, TransformersFeatures, summary
from pdmd.evaluation.perceptual.measurements import (
    DecodedSamples,
    Measurement,
    MeasurementPlace,
)

__all__ = ["VisionFeatures"]

TOGETHER = 64
"""Pictures that are in float32 at once."""


class VisionFeatures(Measurement):
    """The features of any vision network of transformers, such as DINOv2, DINOv3 or CLIP's.

    Args:
        extract: Maps images in [0, 1] to features.
        frames: Frames of a video, at equal distances, whose features are kept.
    """

    default = "facebook/dinov2-base"

    def __init__(self, extract: FeatureExtractor, frames: int = 4) -> None:
        if frames < 1:
            raise ValueError(f"frames must be 1 or more, got {frames}")
        self.extract, self.frames = extract, frames

    @classmethod
    def load(cls, source: str, place: MeasurementPlace) -> Self:
        network = TransformersFeatures.from_pretrained(source, pool=summary)
        return cls(network.to(place.device))

    def __call__(self, samples: DecodedSamples) -> Tensor:
        """Returns features, float32, with shape :math:`(P S, K, D)` for K frames."""
        frames = samples.frames(self.frames)
        rows = [self.extract(part.float() / 255) for part in frames.flatten(0, 1).split(TOGETHER)]
        return torch.cat(rows).reshape(*frames.shape[:2], -1)
