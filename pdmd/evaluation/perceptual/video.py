"""Features of videos by a pretrained video network, for the Frechet video distance.

References:
    Unterthiner et al., arXiv:1812.01717 (FVD, on I3D); Ge et al., arXiv:2404.12391 (why features
    of a self-supervised network such as VideoMAE see motion better than I3D's).
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from pdmd.evaluation.features import Preprocessing, load_frozen, mean_token, summary
from pdmd.evaluation.perceptual.measurements import (
    DecodedSamples,
    Measurement,
    MeasurementPlace,
    evenly,
)

__all__ = ["VideoFeatures"]


class VideoFeatures(Measurement):
    """The features of a video network of transformers, such as VideoMAE or ViViT.

    Args:
        model: The network; takes ``pixel_values`` of shape :math:`(B, T, C, H, W)`.
        preprocessing: Maps images in [0, 1] to the network's.
        frames: T, the number of frames, at equal distances over the video.
        pool: Maps the network's output to features of shape :math:`(B, D)`.
        together: Videos that are evaluated at once.
    """

    default = "MCG-NJU/videomae-base"

    def __init__(
        self,
        model: Any,
        preprocessing: Preprocessing,
        *,
        frames: int,
        pool: Any = summary,
        together: int = 8,
    ) -> None:
        self.model, self.preprocessing = model.eval().requires_grad_(False), preprocessing
        self.frames, self.pool, self.together = frames, pool, together

    @classmethod
    def load(cls, source: str, place: MeasurementPlace) -> Self:
        model, config, missing = load_frozen(source)
        frames = getattr(model.config, "num_frames", None)
        if not frames:
            raise ValueError(
                f"{source!r} is no video model: its configuration has no num_frames; pass "
                f"one such as {cls.default}"
            )
        pool = mean_token if any("pooler" in key for key in missing) else summary
        lost = [key for key in missing if "pooler" not in key]
        if lost:
            raise ValueError(f"{source!r} has no weights for {', '.join(lost[:3])}")
        preprocessing = Preprocessing.from_config(config)
        return cls(model.to(place.device), preprocessing, frames=frames, pool=pool)

    @torch.inference_mode()
    def __call__(self, samples: DecodedSamples) -> Tensor:
        """Returns features, float32, with shape :math:`(P S, 1, D)`.

        Raises:
            ValueError: If the samples are images.
        """
        if not samples.video:
            raise ValueError("the Frechet video distance needs videos; leave it out for images")
        like = next(self.model.parameters())
        chosen = evenly(samples.pictures.shape[2], self.frames)
        rows: list[Tensor] = []
        for part in samples.pictures.split(self.together):
            frames = part[:, :, chosen].transpose(1, 2).to(like.device).float() / 255
            pixels = self.preprocessing(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
            rows.append(self.pool(self.model(pixel_values=pixels.to(like.dtype))).float())
        return torch.cat(rows)[:, None]
