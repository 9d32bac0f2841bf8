"""Text-to-image UNets over latents: what Stable Diffusion and SDXL share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pdmd.diffusion.predictions import Kind
from pdmd.diffusion.variance_preserving import DiscreteVP
from pdmd.teachers.conditioning.prompts import Prompts
from pdmd.teachers.families.discrete_timesteps import time_range_of, timestep_of
from pdmd.teachers.families.text import TextTeacher
from pdmd.typing import Condition, Latents

__all__ = ["UNetTeacher", "compression_of"]


class UNetTeacher(TextTeacher):
    r"""A ``UNet2DConditionModel`` over latents of shape :math:`(C, H / 8, W / 8)`.

    A subclass states :attr:`added`, and may override :meth:`added_inputs`.

    Attributes:
        added: The ``addition_embed_type`` of the family's networks.

    Args:
        unet: The network.
        schedule: Its noise levels.
        kind: What it predicts.
        height: Height of an image; the network's own by default.
        width: Width of an image, likewise.
        compression: Pixels to one latent, in height and width.
        prompts: Turns prompts into conditions; a copy that trains has none.
        decode: Turns latents into images in [0, 1], with shape :math:`(B, 3, H, W)`.

    Raises:
        ValueError: If the size is no multiple of the compression, or the network takes more than
            noisy latents and text.
    """

    added: str | None = None

    def __init__(
        self,
        unet: Any,
        *,
        schedule: DiscreteVP,
        kind: Kind,
        height: int | None = None,
        width: int | None = None,
        compression: int = 8,
        prompts: Prompts | None = None,
        decode: Callable[[Latents], Tensor] | None = None,
    ) -> None:
        self.check_network(unet.config)
        height, width = (
            own * compression if asked is None else asked
            for asked, own in zip((height, width), _sample_size(unet.config), strict=True)
        )
        for name, size in (("height", height), ("width", width)):
            if size < 1 or size % compression:
                raise ValueError(f"{name} is a multiple of {compression}, got {size}")
        super().__init__(
            unet,
            latent_shape=(unet.config.in_channels, height // compression, width // compression),
            shift=1.0,
            prompts=prompts,
            decode=decode,
            schedule=schedule,
            kind=kind,
            time_range=time_range_of(schedule),
        )
        self.levels = schedule
        self.height, self.width, self.compression = height, width, compression

    @classmethod
    def check_network(cls, config: Any) -> None:
        """Refuses networks of other families, by their configuration.

        Raises:
            ValueError: If it is one.
        """
        if config.in_channels != config.out_channels:
            raise ValueError(
                f"this UNet takes {config.in_channels} channels and makes {config.out_channels}, "
                "so it needs an image besides noise; only text-to-image networks are supported"
            )
        if config.addition_embed_type != cls.added:
            raise ValueError(
                f"this UNet has addition_embed_type {config.addition_embed_type!r}, and "
                f"{cls.__name__} takes {cls.added!r}; load it with the teacher of its family"
            )
        for name in ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type"):
            if config.get(name) is not None:
                raise ValueError(f"UNets with {name} are not supported, got {config[name]!r}")
        if config.time_cond_proj_dim is not None:
            raise ValueError(
                "this UNet takes guidance as an input (time_cond_proj_dim); only those guided by "
                "two evaluations are supported"
            )

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates the UNet at its own time."""
        rows = self.conditioned(condition, x_t)
        dtype = self.transformer.dtype
        value = self.transformer(
            x_t.to(dtype),
            timestep_of(t, self.levels),
            encoder_hidden_states=rows["prompt"].to(dtype),
            added_cond_kwargs=self.added_inputs(rows, x_t),
            return_dict=False,
        )[0]
        return value.to(x_t.dtype)

    def added_inputs(self, rows: Any, x_t: Latents) -> dict[str, Tensor] | None:
        """Returns what the network takes besides text; here nothing.

        Args:
            rows: The condition.
            x_t: The noisy latents.
        """
        return None

    def around(self, transformer: Any) -> UNetTeacher:
        return type(self)(
            transformer,
            schedule=self.levels,
            kind=self.kind,
            height=self.height,
            width=self.width,
            compression=self.compression,
        )


def compression_of(vae: Any) -> int:
    """Returns the pixels to one latent of a VAE, by its configuration."""
    return 2 ** (len(vae.get("block_out_channels", (0,) * 4)) - 1)


def _sample_size(config: Any) -> tuple[int, int]:
    size = config.sample_size
    if size is None:
        raise ValueError("the UNet states no sample_size; give height and width")
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
