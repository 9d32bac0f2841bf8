r"""Motion of videos: mean optical flow and dynamic degree.

With :math:`v` the flow between two frames, in pixels, at 8 frames a second:

- *optical flow*: the mean of :math:`\|v\|` over pixels and pairs of frames;
- *dynamic degree*: the share of videos in which the mean of the largest 5% of :math:`\|v\|`
  exceeds :math:`6 \min(H, W) / 256` in at least a quarter of the frames.

References:
    Huang et al., VBench, arXiv:2311.17982 (dynamic degree, on RAFT); Teed and Deng, RAFT,
    arXiv:2003.12039. Fan et al., arXiv:2510.27684, measure the flow by UniMatch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from pdmd.evaluation.perceptual.measurements import (
    DecodedSamples,
    Measurement,
    MeasurementPlace,
)
from pdmd.extras import require

__all__ = ["Flow", "Motion", "RaftFlow", "motion_of_flows"]

Flow = Callable[[Tensor, Tensor], Tensor]
"""Maps two batches of frames in [0, 1], (B, 3, H, W), to flows in pixels, (B, 2, H, W)."""

RATE = 8.0
"""Frames per second at which flow is measured."""
LARGEST = 0.05
"""The share of pixels whose flow decides whether a pair of frames moves."""
PAIRS = 8
"""Pairs of frames that are evaluated at once."""


class Motion(Measurement):
    """The mean flow of each video, and whether it moves.

    Args:
        flow: The optical flow.
        fps: Frames per second of the videos.
    """

    def __init__(self, flow: Flow, fps: float = 16.0) -> None:
        if not fps > 0:
            raise ValueError(f"fps must be positive, got {fps}")
        self.flow, self.every = flow, max(1, round(fps / RATE))

    @classmethod
    def load(cls, source: str, place: MeasurementPlace) -> Self:
        return cls(RaftFlow.load(source, place.device), place.fps)

    @torch.inference_mode()
    def __call__(self, samples: DecodedSamples) -> Tensor:
        """Returns mean flow and whether the video moves, float32, with shape :math:`(P S, 2)`.

        Raises:
            ValueError: If the samples are images, or have a single frame at this rate.
        """
        if not samples.video:
            raise ValueError("motion needs videos; leave it out for images")
        rows: list[Tensor] = []
        for video in samples.pictures:
            frames = video[:, :: self.every].transpose(0, 1)
            if len(frames) < 2:
                raise ValueError(
                    f"videos of {video.shape[1]} frames have fewer than two at {RATE:g} a second; "
                    "give their rate with --fps"
                )
            if frames.shape[1] == 1:
                frames = frames.expand(-1, 3, -1, -1)
            flows: list[Tensor] = []
            for i in range(0, len(frames) - 1, PAIRS):
                part = frames[i : i + PAIRS + 1].float() / 255
                flows.append(_lengths(self.flow(part[:-1], part[1:])))
            rows.append(torch.stack(motion_of_flows(torch.cat(flows))))
        return torch.stack(rows)


def motion_of_flows(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean flow of one video, and whether it moves, as 0 or 1.

    Args:
        lengths: Lengths of the flow between frames and the next, in pixels, with shape
            :math:`(F - 1, H, W)`.

    References:
        Huang et al., VBench, arXiv:2311.17982.
    """
    pairs, height, width = lengths.shape
    largest = lengths.flatten(1).topk(max(1, int(height * width * LARGEST)), dim=1).values
    moving = largest.mean(1) > 6.0 * min(height, width) / 256
    needed = round(4 * (pairs + 1) / 16)
    return lengths.mean(), (moving.sum() >= needed).to(lengths.dtype)


def _lengths(flow: Tensor) -> Tensor:
    return flow.float().square().sum(1).sqrt()


class RaftFlow:
    """The optical flow of torchvision's RAFT.

    Args:
        model: ``torchvision.models.optical_flow.raft_large()`` with weights.
    """

    def __init__(self, model: Any) -> None:
        self.model = model.eval().requires_grad_(False)

    @classmethod
    def load(cls, source: str, device: torch.device) -> Self:
        """Loads the network.

        Args:
            source: A safetensors file with the weights of ``raft_large``.
            device: Its device.

        Raises:
            ValueError: If torchvision is not installed, or the file is missing or does not fit.
        """
        require("perceptual", "torchvision", alternative="leave the metric 'motion' out")
        if not Path(source).is_file() or Path(source).suffix != ".safetensors":
            raise ValueError(
                f"motion needs the weights of torchvision's raft_large as safetensors, got "
                f"{source!r}; docs/evaluation.md shows how to write the file for --motion"
            )
        from safetensors.torch import load_file

        package: Any = importlib.import_module("torchvision.models.optical_flow")
        model = package.raft_large(weights=None)
        try:
            model.load_state_dict(load_file(source))
        except RuntimeError as error:
            first = str(error).strip().splitlines()[-1].strip()[:200]
            raise ValueError(f"{source} does not fit raft_large: {first}") from error
        return cls(model.to(device))

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """Returns flows; frames are padded to multiples of 8, as RAFT requires."""
        height, width = first.shape[2:]
        pad = (0, -width % 8, 0, -height % 8)
        like = next(self.model.parameters())
        both = [
            functional.pad(2 * x.to(like.device) - 1, pad, mode="replicate")
            for x in (first, second)
        ]
        return self.model(*both)[-1][:, :, :height, :width]
