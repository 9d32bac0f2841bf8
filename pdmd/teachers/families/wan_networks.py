r"""Wan's networks: what text to video and image to video share.

The network takes :math:`1000 \sigma` as its time and predicts the velocity
:math:`\varepsilon - x_0` of latents of shape :math:`(C, F, H, W)`. Text is padded to 512 tokens,
without a mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pdmd.teachers.families.text import TextTeacher
from pdmd.teachers.families.tokens import check_frames, check_head, check_size

__all__ = ["SIZES", "WanNetworkTeacher"]

SIZES = {
    "num_layers": 40,
    "num_attention_heads": 40,
    "attention_head_dim": 128,
    "ffn_dim": 13824,
    "text_dim": 4096,
    "latent_channels": 16,
    "spatial_compression": 8,
}
"""Sizes of the 2.2 A14B's networks; the 5B has 48 ``latent_channels``, compressed by 16."""


class WanNetworkTeacher(TextTeacher):
    r"""One network of Wan over latents of shape :math:`(C, (F - 1) / 4 + 1, H / 8, W / 8)`.

    A subclass implements :meth:`check_network` and ``network``.

    Args:
        backbone: A ``WanTransformer3DModel`` of diffusers.
        height: Height of a video, a multiple of the compression times the network's patch.
        width: Width of a video, as the height.
        frames: Its frames, a multiple of the compression in time and one.
        compression: Pixels to one latent in time, height and width: (4, 8, 8), and (4, 16, 16)
            for the 5B.
        arguments: As :class:`~pdmd.teachers.families.text.TextTeacher` takes. The shift is 3 up to
            832 x 480 pixels and 5 above by default.

    Raises:
        ValueError: If the size does not fit, or the network's inputs are others.
    """

    options = {"height": 480, "width": 832, "frames": 81, "compression": (4, 8, 8)}
    latents_per_token = 4
    random_length = 512

    @classmethod
    def check_network(cls, config: Any, time: int) -> None:
        """Rejects networks with other inputs; here none.

        Args:
            config: The network's configuration.
            time: Frames of a video to one latent.

        Raises:
            ValueError: If it is one.
        """

    @classmethod
    def latents(
        cls,
        config: Any,
        *,
        height: int,
        width: int,
        frames: int,
        compression: tuple[int, int, int],
        **_: Any,
    ) -> tuple[int, ...]:
        time, rows, columns = compression
        cls.check_network(config, time)
        check_frames(time, frames)
        check_size(rows * config.patch_size[1], height=height)
        check_size(columns * config.patch_size[2], width=width)
        return config.out_channels, (frames - 1) // time + 1, height // rows, width // columns

    @classmethod
    def network_config(cls, **sizes: Any) -> dict[str, Any]:
        del sizes["spatial_compression"]
        channels = sizes.pop("latent_channels")
        check_head(sizes["attention_head_dim"], 6)
        return {**sizes, "in_channels": channels, "out_channels": channels}

    @classmethod
    def config_options(cls, sizes: Mapping[str, Any]) -> dict[str, Any]:
        space = sizes["spatial_compression"]
        return {"compression": (4, space, space)}

    @classmethod
    def encode_texts(cls, pipeline: Any, texts: list[str], length: int | None) -> dict[str, Any]:
        embeddings, _ = pipeline.encode_prompt(
            texts, do_classifier_free_guidance=False, max_sequence_length=512
        )
        return {"prompt": embeddings}

    def default_shift(self) -> float:
        return 3.0 if self.options["height"] * self.options["width"] <= 480 * 832 else 5.0

    def reset_tables(self, device: str | torch.device = "cpu") -> None:
        """Recomputes the tables of positions."""
        rope = self.backbone.rope
        with torch.device(device):
            self.backbone.rope = type(rope)(
                rope.attention_head_dim, rope.patch_size, rope.max_seq_len
            )
