"""Measurements: what decoded samples are reduced to, a row for each, before they are dropped.

A measurement sees all samples of a few prompts at a time, on the device of its rank. Metrics
(:mod:`pdmd.evaluation.perceptual.metrics`) are then computed of the rows of all samples; several
metrics may read the same rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from pdmd.registry import Registry
from pdmd.typing import Latents

__all__ = [
    "DecodedSamples",
    "Measurement",
    "MeasurementPlace",
    "Thumbnails",
    "decoded",
    "measurements",
]

TOGETHER = 2**16
"""Latent values that are decoded together, as a decoder needs more memory than a network."""


@dataclass(frozen=True)
class DecodedSamples:
    """All samples of a few prompts, decoded.

    Args:
        pictures: Images of shape :math:`(P S, C, H, W)` or videos of shape
            :math:`(P S, C, F, H, W)`, uint8 as files would hold them, grouped by prompt.
        prompts: The P prompts.
    """

    pictures: Tensor
    prompts: Sequence[Any]

    @property
    def seeds(self) -> int:
        """The number of samples of each prompt."""
        return len(self.pictures) // len(self.prompts)

    @property
    def video(self) -> bool:
        """Whether the samples are videos."""
        return self.pictures.ndim == 5

    def frames(self, most: int) -> Tensor:
        """Returns frames at equal distances, uint8, with shape :math:`(P S, K, C, H, W)`.

        Args:
            most: The number of frames, of which an image has one; the middle one of a video if 1.
        """
        if not self.video:
            return self.pictures[:, None]
        count = self.pictures.shape[2]
        if most == 1:
            return self.pictures[:, :, count // 2][:, None]
        return self.pictures[:, :, evenly(count, min(most, count))].transpose(1, 2)

    def texts(self) -> list[str]:
        """Returns the prompts as texts.

        Raises:
            ValueError: If a prompt has none.
        """
        found = [getattr(prompt, "text", prompt) for prompt in self.prompts]
        for text in found:
            if not isinstance(text, str):
                raise ValueError(
                    f"the prompt {text!r} is no text, which a score of image and text needs; "
                    "leave that metric out"
                )
        return found


@dataclass(frozen=True, kw_only=True)
class MeasurementPlace:
    """Where measurements are computed, and of what.

    Args:
        device: The device of their networks.
        fps: Frames per second of videos.
    """

    device: torch.device
    fps: float = 16.0


class Measurement(ABC):
    """Reduces decoded samples to rows.

    Attributes:
        default: The network's repository on the hub, if there is a usual one.
    """

    default: str = ""

    @classmethod
    @abstractmethod
    def load(cls, source: str, place: MeasurementPlace) -> Self:
        """Loads the measurement's network.

        Args:
            source: A repository of the hub, or a folder or file.
            place: Where it computes.

        Raises:
            ValueError: If it cannot be loaded.
        """

    @abstractmethod
    def __call__(self, samples: DecodedSamples) -> Tensor:
        """Returns a row for each sample, with shape :math:`(P S, *)`.

        Args:
            samples: The samples.

        Raises:
            ValueError: If they are of a kind that cannot be measured.
        """


measurements: Registry[type[Measurement]] = Registry(
    "measurement",
    {
        "vision": "pdmd.evaluation.perceptual.vision:VisionFeatures",
        "clip": "pdmd.evaluation.perceptual.image_text:ImageTextScore",
        "video": "pdmd.evaluation.perceptual.video:VideoFeatures",
        "motion": "pdmd.evaluation.perceptual.motion:Motion",
        "lpips": "pdmd.evaluation.perceptual.pairwise_lpips:PairwiseLpips",
    },
)
"""Measurements by name, which is also that of the option with their source."""


class Thumbnails:
    """Reduces samples to small pictures for a report, the middle frame of videos.

    Args:
        side: The longer side, at most.
    """

    def __init__(self, side: int = 192) -> None:
        self.side = side

    def __call__(self, samples: DecodedSamples) -> Tensor:
        """Returns pictures, uint8, with shape :math:`(P S, C, h, w)`."""
        pictures = samples.frames(1)[:, 0]
        height, width = pictures.shape[2:]
        scale = min(1.0, self.side / max(height, width))
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        if size == (height, width):
            return pictures
        small = functional.interpolate(pictures.float(), size, mode="area")
        return small.round().to(torch.uint8)


def evenly(count: int, most: int) -> list[int]:
    """Returns indices at equal distances, the first and last of ``count`` included."""
    return [round(i * (count - 1) / max(1, most - 1)) for i in range(most)]


def decoded(decode: Callable[[Latents], Tensor], x: Latents) -> Tensor:
    """Decodes latents in small batches.

    Args:
        decode: Maps latents to pictures in [0, 1].
        x: Latents, with shape :math:`(B, *)`.

    Returns:
        Pictures, uint8, with shape :math:`(B, C, H, W)` or :math:`(B, C, F, H, W)`.

    Raises:
        ValueError: If one is not finite.
    """
    few = max(1, TOGETHER // x[0].numel())

    def parts() -> Iterator[Tensor]:
        for part in x.split(few):
            pictures = decode(part).float()
            if not bool(pictures.isfinite().all()):
                raise ValueError(
                    f"{'pictures' if bool(part.isfinite().all()) else 'samples'} are not finite, "
                    "and would be measured as black; compute in bfloat16 or float32, or inspect "
                    "the student"
                )
            yield (pictures.clamp(0, 1) * 255).round().to(torch.uint8)

    return torch.cat(list(parts()))
