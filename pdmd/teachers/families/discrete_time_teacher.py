"""Teachers whose networks take a discrete process's level as their time.

The levels and the network's time are those of :mod:`pdmd.teachers.families.discrete_timesteps`.
Some networks predict a variance too; its channels are dropped, since no step here uses one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from pdmd.diffusion.predictions import Kind
from pdmd.diffusion.variance_preserving import DiscreteVP
from pdmd.teachers.families.discrete_timesteps import (
    LINEAR,
    noise_levels,
    read_levels,
    time_range_of,
    timestep_of,
)
from pdmd.teachers.families.pipeline_teacher import PipelineTeacher
from pdmd.typing import Latents

__all__ = ["DiscreteTimeTeacher"]


class DiscreteTimeTeacher(PipelineTeacher):
    """A network trained on the levels of a discrete process.

    Args:
        backbone: The network.
        schedule: Its noise levels.
        kind: What it predicts.
        arguments: As :class:`~pdmd.teachers.families.pipeline_teacher.PipelineTeacher` takes.

    Attributes:
        betas: The family's noise levels, for random weights.
        levels: The schedule.
    """

    betas: ClassVar[Mapping[str, Any]] = LINEAR

    def __init__(
        self, backbone: Any, *, schedule: DiscreteVP, kind: Kind, **arguments: Any
    ) -> None:
        time_range = time_range_of(schedule)
        super().__init__(
            backbone, schedule=schedule, kind=kind, time_range=time_range, **arguments
        )
        self.levels = schedule

    @classmethod
    def config_options(cls, sizes: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the family's levels and the kind of prediction among the sizes."""
        stated = ("prediction_type", "rescale_betas_zero_snr", "snr_shift_scale")
        chosen = {key: sizes[key] for key in stated if key in sizes}
        schedule, kind = noise_levels({**cls.betas, **chosen})
        return {"schedule": schedule, "kind": kind}

    @classmethod
    def read_options(cls, folder: str | Path) -> dict[str, Any]:
        """Returns the levels and the kind of prediction that a pipeline's scheduler states."""
        schedule, kind = read_levels(folder, cls.read_scheduler_slot(folder))
        return {"schedule": schedule, "kind": kind, **super().read_options(folder)}

    @classmethod
    def read_scheduler_slot(cls, folder: str | Path) -> str | None:
        """Returns the subfolder of a pipeline's scheduler; ``None`` for the folder itself."""
        return "scheduler"

    @staticmethod
    def check_channels_out(config: Any) -> None:
        """Checks that a network predicts latents, with or without a variance.

        Raises:
            ValueError: If its output has neither as many channels as its input nor twice as many.
        """
        channels = config.in_channels
        out_channels = channels if config.out_channels is None else config.out_channels
        if out_channels not in (channels, 2 * channels):
            raise ValueError(
                f"this network has {channels} input and {out_channels} output channels; as many, "
                "or twice as many for a learned variance, are supported"
            )

    def evaluate(self, x_t: Latents, t: Tensor, **inputs: Any) -> Latents:
        """Evaluates the network at its own time, without the variance.

        Args:
            x_t: Noisy latents, with shape :math:`(B, *)`.
            t: Times, with shape :math:`(B)`.
            inputs: The network's other inputs, by name.
        """
        x, time = x_t.to(self.backbone.dtype), timestep_of(t, self.levels)
        value = self.backbone(x, timestep=time, **inputs, return_dict=False)[0]
        return value[:, : x_t.shape[1]].to(x_t.dtype)
