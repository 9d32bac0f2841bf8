r"""DDPM: unconditional UNets over pixels.

The network takes the level as its time (:mod:`pdmd.teachers.families.discrete_timesteps`) and
predicts what the scheduler says, :math:`\varepsilon` nearly everywhere; channels of a learned
variance are dropped, since no step here uses one. Pixels are in [-1, 1]. The family's samplers
clip every prediction of :math:`x_0` to that range where the scheduler states ``clip_sample``;
probability flow is not clipped, and neither is a student.

References:
    Ho et al., Denoising Diffusion Probabilistic Models, arXiv:2006.11239.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.predictions import Kind
from pdmd.diffusion.variance_preserving import DiscreteVP
from pdmd.teachers.base import Teacher
from pdmd.teachers.families.discrete_timesteps import (
    noise_levels,
    read_levels,
    time_range_of,
    timestep_of,
)
from pdmd.teachers.families.pipelines import build_part, configuration, load_transformer
from pdmd.teachers.mixture import encode_labels
from pdmd.typing import Condition, Latents

__all__ = ["DDPMTeacher"]


class DDPMTeacher(Teacher):
    """A ``UNet2DModel`` over pixels of shape :math:`(C, H, W)`.

    Args:
        unet: The network.
        schedule: Its noise levels.
        kind: What it predicts.
        height: Height of an image; the network's own by default.
        width: Width of an image, likewise.

    Raises:
        ValueError: If the network is conditional, takes another time than the level, or makes
            neither as many channels as it takes nor twice as many.
    """

    def __init__(
        self,
        unet: Any,
        *,
        schedule: DiscreteVP,
        kind: Kind,
        height: int | None = None,
        width: int | None = None,
    ) -> None:
        config = unet.config
        if config.time_embedding_type != "positional":
            raise ValueError(
                "only UNets that take the level as their time (time_embedding_type 'positional') "
                f"are supported, got {config.time_embedding_type!r}"
            )
        for name in ("class_embed_type", "num_class_embeds"):
            if config.get(name) is not None:
                raise ValueError(f"only unconditional UNets are supported, got {name}")
        if config.out_channels not in (config.in_channels, 2 * config.in_channels):
            raise ValueError(
                f"this UNet takes {config.in_channels} channels and makes {config.out_channels}; "
                "as many, or twice as many for a learned variance, are supported"
            )
        if height is None or width is None:
            size = config.sample_size
            if size is None:
                raise ValueError("the UNet states no sample_size; give height and width")
            own = (size, size) if isinstance(size, int) else size
            height = int(own[0]) if height is None else height
            width = int(own[1]) if width is None else width
        multiple = 2 ** (len(config.block_out_channels) - 1)
        for name, pixels in (("height", height), ("width", width)):
            if pixels < 1 or pixels % multiple:
                raise ValueError(f"{name} is a multiple of {multiple}, got {pixels}")
        super().__init__(
            schedule=schedule,
            kind=kind,
            latent_shape=(config.in_channels, height, width),
            time_range=time_range_of(schedule),
        )
        self.unet, self.levels = unet, schedule

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        height: int | None = None,
        width: int | None = None,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device = "cpu",
        meta: bool = False,
    ) -> DDPMTeacher:
        """Loads the UNet of a pipeline, from ``unet/`` or, as the oldest have it, from its root.

        Args:
            folder: The pipeline's folder or hub name, such as ``"google/ddpm-cifar10-32"``.
            height: Height of an image; the network's own by default.
            width: Width of an image, likewise.
            dtype: Type of the weights.
            device: Where they live.
            meta: Whether to leave the weights on the meta device.

        Raises:
            ValueError: If a part is missing or the network is not of this family.
        """
        unet_place, levels_place = "unet", "scheduler"
        if _at_root(folder):
            unet_place, levels_place = "", ""
        schedule, kind = read_levels(folder, levels_place or None)
        unet = load_transformer(
            "UNet2DModel", folder, unet_place, dtype=dtype, device=device, meta=meta
        )
        return cls(unet, schedule=schedule, kind=kind, height=height, width=width)

    @classmethod
    def from_config(
        cls,
        *,
        height: int | None = None,
        width: int | None = None,
        image_channels: int = 3,
        channels: int = 128,
        layers_per_block: int = 2,
        norm_num_groups: int = 32,
        prediction_type: str = "epsilon",
        learned_variance: bool = False,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device = "cpu",
        meta: bool = False,
        seed: int = 0,
    ) -> DDPMTeacher:
        """Makes a teacher with random weights; by default that of CIFAR-10, of full size.

        Args:
            height: Height of an image, 32 by default.
            width: Width of an image, likewise.
            image_channels: Channels of an image.
            channels: Channels of the first block; the other three have twice as many.
            layers_per_block: Residual layers of a block.
            norm_num_groups: Groups of the norms; they divide the channels.
            prediction_type: ``epsilon``, ``v_prediction`` or ``sample``.
            learned_variance: Whether the network makes a variance too.
            dtype: Type of the weights.
            device: Where they live.
            meta: Whether to make them without memory, on the meta device.
            seed: Seed of the weights.

        Raises:
            ValueError: If an argument is off.
        """
        if channels < 1 or norm_num_groups < 1 or channels % norm_num_groups:
            raise ValueError(
                f"channels are a multiple of norm_num_groups, got {channels} and {norm_num_groups}"
            )
        config = {
            "sample_size": 32,
            "in_channels": image_channels,
            "out_channels": image_channels * (2 if learned_variance else 1),
            "block_out_channels": [channels, *[2 * channels] * 3],
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            "layers_per_block": layers_per_block,
            "attention_head_dim": None,
            "downsample_padding": 0,
            "flip_sin_to_cos": False,
            "freq_shift": 1,
            "norm_eps": 1e-6,
            "norm_num_groups": norm_num_groups,
        }
        unet = build_part("UNet2DModel", config, dtype=dtype, device=device, meta=meta, seed=seed)
        schedule, kind = noise_levels(
            {
                "beta_schedule": "linear",
                "beta_start": 1e-4,
                "beta_end": 0.02,
                "prediction_type": prediction_type,
            }
        )
        return cls(unet, schedule=schedule, kind=kind, height=height, width=width)

    @classmethod
    def from_arguments(
        cls, *, folder: str = "", meta: bool = False, **arguments: Any
    ) -> DDPMTeacher:
        """Makes a teacher from plain values, as configurations hold them.

        Args:
            folder: A pipeline's folder or hub name, for :meth:`from_pretrained`; without one
                :meth:`from_config` makes random weights.
            meta: Whether to leave the weights on the meta device.
            arguments: Passed on.
        """
        if folder:
            return cls.from_pretrained(folder, meta=meta, **arguments)
        return cls.from_config(meta=meta, **arguments)

    def encode(self, prompts: Sequence[Any]) -> Condition:
        """Takes ``None`` alone, and returns no condition."""
        return encode_labels(prompts, 0)

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates the UNet at its own time."""
        value = self.unet(x_t.to(self.unet.dtype), timestep_of(t, self.levels), return_dict=False)[
            0
        ]
        return value[:, : x_t.shape[1]].to(x_t.dtype)

    def trainable_copy(self) -> Denoiser:
        """Returns a copy of the UNet that trains."""
        unet = copy.deepcopy(self.unet)
        height, width = self.latent_shape[1:]
        return (
            type(self)(unet, schedule=self.levels, kind=self.kind, height=height, width=width)
            .requires_grad_(True)
            .train()
        )

    def decode(self, x: Latents) -> Tensor:
        """Turns pixels in [-1, 1] into images in [0, 1], with shape :math:`(B, C, H, W)`."""
        return (x / 2 + 0.5).clamp(0, 1)


def _at_root(folder: str | Path) -> bool:
    """Says whether a pipeline has its network at its root, as diffusers' oldest pipelines do."""
    if Path(folder).is_dir():
        return not (Path(folder) / "unet").is_dir() and (Path(folder) / "config.json").is_file()
    try:
        configuration("UNet2DModel", folder, "unet")
    except ValueError:
        try:
            configuration("UNet2DModel", folder)
        except ValueError:
            return False  # so that the error is about the place where it belongs
        return True
    return False
