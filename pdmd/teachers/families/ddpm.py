r"""DDPM: unconditional UNets over pixels.

The network takes the level as its time and predicts what the scheduler states,
:math:`\varepsilon` nearly everywhere, without or with a variance
(:mod:`pdmd.teachers.families.discrete_time_teacher`). Pixels are in [-1, 1]. The family's samplers
clip every prediction of :math:`x_0` to that range where the scheduler states ``clip_sample``;
probability flow is not clipped, and neither is a student.

References:
    Ho et al., Denoising Diffusion Probabilistic Models, arXiv:2006.11239.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdmd.teachers.base import Teacher
from pdmd.teachers.families.discrete_time_teacher import DiscreteTimeTeacher
from pdmd.teachers.families.discrete_timesteps import check_channels, own_size
from pdmd.teachers.families.layouts import PipelineLayout
from pdmd.teachers.families.pipelines import configuration
from pdmd.teachers.families.tokens import check_size
from pdmd.teachers.mixture import encode_labels
from pdmd.typing import Condition, Latents

__all__ = ["DDPMTeacher"]


class DDPMTeacher(DiscreteTimeTeacher):
    """A ``UNet2DModel`` over pixels of shape :math:`(C, H, W)`.

    Random weights are of CIFAR-10's network by default, whose last three blocks have twice the
    ``channels`` of the first.

    Args:
        backbone: The network.
        height: Height of an image; the network's own by default.
        width: Width of an image, as the height.
        arguments: As
            :class:`~pdmd.teachers.families.discrete_time_teacher.DiscreteTimeTeacher` takes.

    Raises:
        ValueError: If the network is conditional, takes another time than the level, or its
            output has neither as many channels as its input nor twice as many.
    """

    layout = PipelineLayout(
        pipeline="DDPMPipeline", network="UNet2DModel", slots=("unet",), scheduler=""
    )
    released = {
        "image_channels": 3,
        "channels": 128,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "prediction_type": "epsilon",
        "learned_variance": False,
    }
    options = {"height": None, "width": None}

    @classmethod
    def complete_options(cls, config: Any, options: dict[str, Any]) -> dict[str, Any]:
        if config.time_embedding_type != "positional":
            raise ValueError(
                "only UNets that take the level as their time (time_embedding_type 'positional') "
                f"are supported, got {config.time_embedding_type!r}"
            )
        for name in ("class_embed_type", "num_class_embeds"):
            if config.get(name) is not None:
                raise ValueError(f"only unconditional UNets are supported, got {name}")
        cls.check_channels_out(config)
        return own_size(config, options)

    @classmethod
    def latents(cls, config: Any, *, height: int, width: int, **_: Any) -> tuple[int, ...]:
        check_size(2 ** (len(config.block_out_channels) - 1), height=height, width=width)
        return config.in_channels, height, width

    @classmethod
    def network_config(cls, *, channels: int, image_channels: int, **sizes: Any) -> dict[str, Any]:
        check_channels(channels, sizes["norm_num_groups"])
        return {
            "sample_size": 32,
            "in_channels": image_channels,
            "out_channels": image_channels * (2 if sizes["learned_variance"] else 1),
            "block_out_channels": [channels, *[2 * channels] * 3],
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            "layers_per_block": sizes["layers_per_block"],
            "attention_head_dim": None,
            "downsample_padding": 0,
            "flip_sin_to_cos": False,
            "freq_shift": 1,
            "norm_eps": 1e-6,
            "norm_num_groups": sizes["norm_num_groups"],
        }

    @classmethod
    def read_scheduler_slot(cls, folder: str | Path) -> str | None:
        return None if _at_root(folder) else "scheduler"

    @classmethod
    def read_slots(cls, folder: str | Path) -> tuple[str, ...]:
        """Returns ``unet``, or the root for the oldest pipelines, whose network lies there."""
        return ("",) if _at_root(folder) else cls.layout.slots

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, dtype: str | torch.dtype = "float32", **options: Any
    ) -> Teacher:
        return super().from_pretrained(folder, dtype=dtype, **options)

    def encode(self, prompts: Sequence[Any]) -> Condition:
        """Takes ``None`` alone, and returns no condition."""
        return encode_labels(prompts, 0)

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates the UNet at its own time, without the variance."""
        return self.evaluate(x_t, t)

    def decode(self, x: Latents) -> Tensor:
        """Turns pixels in [-1, 1] into images in [0, 1], with shape :math:`(B, C, H, W)`."""
        return (x / 2 + 0.5).clamp(0, 1)


def _at_root(folder: str | Path) -> bool:
    """Returns whether a pipeline's network lies at its root, as in diffusers' oldest pipelines."""
    if Path(folder).is_dir():
        return not (Path(folder) / "unet").is_dir() and (Path(folder) / "config.json").is_file()
    try:
        configuration("UNet2DModel", folder, "unet")
    except ValueError:
        try:
            configuration("UNet2DModel", folder)
        except ValueError:
            return False  # the error then names the subfolder
        return True
    return False
