r"""Motion of clips of one object: a closed-form optical flow.

With the ink :math:`m_f(p) = \max(1 - x_f(p) - \tau, 0)` of frame :math:`f` at pixel :math:`p`, the
centre of mass and the velocity that fits its path best are

.. math::
    c_f = \frac{\sum_p m_f(p) \, p}{\sum_p m_f(p)}, \qquad
    v = \frac{\sum_f (f - \bar f) \, c_f}{\sum_f (f - \bar f)^2}, \qquad
    r^2 = \frac 1 F \sum_f \| c_f - \bar c - (f - \bar f) \, v \|^2

If an object is translated within the frame, its flow is the same in all its pixels, and equal to
:math:`v`; the *path error* :math:`r` is then zero. The threshold :math:`\tau` ignores the faint
background of generated frames, which would pull the centre towards that of the frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["ClipMotion", "clip_motion", "direction_count", "velocity_spread"]

THRESHOLD = 0.1
"""Ink below this is background."""
SECTORS = 8
"""Sectors in which directions are counted."""


@dataclass(frozen=True, kw_only=True)
class ClipMotion:
    """The motion of clips.

    Args:
        velocity: Pixels per frame to the right and downwards, float64, with shape :math:`(B, 2)`.
        path_error: Root mean square distance of the centre from a straight path at constant
            speed, in pixels, with shape :math:`(B)`.
    """

    velocity: Tensor
    path_error: Tensor

    @property
    def speed(self) -> Tensor:
        """Pixels per frame, with shape :math:`(B)`."""
        return self.velocity.norm(dim=1)


def clip_motion(pictures: Tensor) -> ClipMotion:
    """Returns the motion of the dark object in each clip.

    A frame without ink has its centre of mass in the middle.

    Args:
        pictures: Clips in [0, 1], dark on white, with shape :math:`(B, C, F, H, W)`; F > 1.

    Raises:
        ValueError: If they are not clips of at least two frames.
    """
    if pictures.ndim != 5 or pictures.shape[2] < 2:
        raise ValueError(
            "motion needs clips of shape (B, C, F, H, W) with at least two frames, got "
            f"{tuple(pictures.shape)}"
        )
    ink = (1 - pictures.double().mean(1) - THRESHOLD).clamp(min=0)
    mass = ink.sum((2, 3))
    centre = []
    for size, other in ((ink.shape[3], 2), (ink.shape[2], 3)):
        position = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
        centre.append((ink.sum(other) * position.to(ink.device)).sum(2) / mass.clamp(min=1e-9))
    path = torch.stack(centre, 2)  # (B, F, 2)
    time = torch.arange(path.shape[1], dtype=torch.float64, device=path.device)
    time = (time - time.mean())[:, None]
    path = path - path.mean(1, keepdim=True)
    velocity = (time * path).sum(1) / time.square().sum()
    residual = path - time * velocity[:, None]
    return ClipMotion(velocity=velocity, path_error=residual.square().sum(2).mean(1).sqrt())


def velocity_spread(velocity: Tensor, prompt_index: Tensor) -> float:
    r"""Returns the trace of the covariance of velocities within a prompt, averaged over prompts.

    Args:
        velocity: Velocities, with shape :math:`(B, 2)`.
        prompt_index: The prompt of every clip, int64, with shape :math:`(B)`; at least two of
            each.

    Raises:
        ValueError: If a prompt has one clip only.
    """
    prompts, counts = prompt_index.unique(return_counts=True)
    if int(counts.min()) < 2:
        raise ValueError(
            f"prompt {int(prompts[counts.argmin()])} has one clip, and a spread needs two; "
            "sample more clips of it"
        )
    spreads = [velocity[prompt_index == prompt].var(0).sum() for prompt in prompts]
    return float(torch.stack(spreads).mean())


def direction_count(velocity: Tensor, prompt_index: Tensor) -> float:
    r"""Returns the effective number of directions within a prompt, averaged over prompts.

    It is :math:`\exp(-\sum_i p_i \log p_i)` with the share :math:`p_i` of the clips of a prompt
    that move in the i-th of eight equal sectors: 8 if all are equally frequent, 1 if all clips
    move in one direction, and less than 8 for few clips.

    Args:
        velocity: Velocities, with shape :math:`(B, 2)`.
        prompt_index: The prompt of every clip, int64, with shape :math:`(B)`.
    """
    angle = torch.atan2(velocity[:, 1], velocity[:, 0]) / (2 * torch.pi)
    sector = (angle * SECTORS).round().long() % SECTORS
    counts = []
    for prompt in prompt_index.unique():
        share = torch.bincount(sector[prompt_index == prompt], minlength=SECTORS).double()
        counts.append(torch.special.entr(share / share.sum()).sum().exp())
    return float(torch.stack(counts).mean())
