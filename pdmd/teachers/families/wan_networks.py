r"""Wan's networks: what text to video and image to video share.

The network takes :math:`1000 \sigma` as its time and predicts the velocity
:math:`\varepsilon - x_0` of latents of shape :math:`(C, F, H, W)`. Text is padded to 512 tokens,
without a mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pdmd.teachers.families.layouts import PipelineLayout
from pdmd.teachers.families.text import TextTeacher
from pdmd.teachers.families.tokens import check_frames, check_head, check_size

__all__ = ["LAYOUT", "SIZES", "WanNetworkTeacher"]

LAYOUT = PipelineLayout(
    pipeline="WanPipeline",
    network="WanTransformer3DModel",
    vae="AutoencoderKLWan",
    slots=("transformer", "transformer_2"),
    scheduler="",
    task="text-to-video",
    time_scale=1000.0,
    takes_sigmas=False,
    proposes=False,
    output="frames",
    released={
        r"\battn1\.to_out\.0$": "self_attn.o",
        r"\battn1\.to_([qkv])$": r"self_attn.\1",
        r"\battn2\.to_out\.0$": "cross_attn.o",
        r"\battn2\.to_([qkv])$": r"cross_attn.\1",
        r"\battn2\.add_([kv])_proj$": r"cross_attn.\1_img",
        r"\bffn\.net\.0\.proj$": "ffn.0",
        r"\bffn\.net\.2$": "ffn.2",
        r"^condition_embedder\.time_proj$": "time_projection.1",
        r"^condition_embedder\.(text|time)_embedder\.linear_1$": r"\1_embedding.0",
        r"^condition_embedder\.(text|time)_embedder\.linear_2$": r"\1_embedding.2",
        r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj$": "img_emb.proj.1",
        r"^condition_embedder\.image_embedder\.ff\.net\.2$": "img_emb.proj.3",
        r"^proj_out$": "head.head",
    },
    bare=r"^(time_projection|text_embedding|time_embedding|img_emb|head)\.",
)
"""The layout of text to video."""

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
