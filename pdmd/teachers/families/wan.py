r"""Wan: text-to-video transformers of one network (2.1, 2.2 5B) or two (2.2 A14B).

Time, prediction and text are those of :mod:`~pdmd.teachers.families.wan_networks`. In the A14B one
network serves :math:`t \ge 0.875` and another the rest, each with its own guidance scale: a
:class:`~pdmd.teachers.routed.RoutedTeacher` of two, guided by ``Guided(teacher, (4.0, 3.0))``.

References:
    Wan Team, Wan: Open and Advanced Large-Scale Video Generative Models, arXiv:2503.20314.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pdmd.teachers.families.wan_networks import LAYOUT, SIZES, WanNetworkTeacher
from pdmd.typing import Condition, Latents

__all__ = ["WanTeacher"]


class WanTeacher(WanNetworkTeacher):
    r"""One network of Wan, text to video.

    Every time in [0, 1] can be evaluated. Arguments and errors are those of
    :class:`~pdmd.teachers.families.wan_networks.WanNetworkTeacher`. Random weights are the A14B's
    two networks by default; ``boundary_ratio`` is the lowest time of the first, and 0 builds one.
    Networks that take a first image are
    :class:`~pdmd.teachers.families.wan_image.WanImageTeacher`'s.
    """

    layout = LAYOUT
    released = {**SIZES, "boundary_ratio": 0.875}

    @classmethod
    def check_network(cls, config: Any, time: int) -> None:
        if config.in_channels != config.out_channels:
            raise ValueError(
                f"this transformer has {config.in_channels} input and {config.out_channels} "
                "output channels, so it needs a first image; take WanImageTeacher "
                "(wan_i2v)"
            )

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates the network at 1000 times the time."""
        rows = self.conditioned(condition, x_t)
        dtype = self.backbone.dtype
        value = self.backbone(
            hidden_states=x_t.to(dtype),
            timestep=(1000 * t).float(),
            encoder_hidden_states=rows["prompt"].to(dtype),
            return_dict=False,
        )[0]
        return value.to(x_t.dtype)
