r"""Wan: text-to-video transformers of one network (2.1, 2.2 5B) or two (2.2 A14B).

The network takes :math:`1000 \sigma` as its time and predicts the velocity
:math:`\varepsilon - x_0` of latents of shape :math:`(C, F, H, W)`. Text fills 512 tokens, without
a mask. In the A14B one network serves :math:`t \ge 0.875` and another the rest, each with a
guidance scale of its own: a :class:`~pdmd.teachers.routed.RoutedTeacher` of two, guided by
``Guided(teacher, (4.0, 3.0))``.

References:
    Wan Team, Wan: Open and Advanced Large-Scale Video Generative Models, arXiv:2503.20314.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdmd.teachers.conditioning.prompts import EncodedText, PromptEmbeddings, Prompts, prompts_of
from pdmd.teachers.families.layouts import WAN
from pdmd.teachers.families.pipelines import decoder, load_text_encoder
from pdmd.teachers.families.text import TextTeacher
from pdmd.teachers.families.tokens import check_head
from pdmd.teachers.families.wan_networks import (
    build_networks,
    compression_of,
    default_shift,
    load_networks,
    video_shape,
)
from pdmd.teachers.routed import RoutedTeacher
from pdmd.typing import Condition, Latents

__all__ = ["WanTeacher"]


class WanTeacher(TextTeacher):
    r"""One network of Wan over latents of shape :math:`(C, (F - 1) / 4 + 1, H / 8, W / 8)`.

    Every time in [0, 1] can be asked. Networks that take a first image are
    :class:`~pdmd.teachers.families.wan_image.WanImageTeacher`'s.

    Args:
        transformer: A ``WanTransformer3DModel`` of diffusers.
        height: Height of a video, a multiple of the compression times the network's patch.
        width: Width of a video, likewise.
        frames: Its frames, a multiple of the compression in time and one.
        compression: Pixels to one latent in time, height and width: (4, 8, 8), and (4, 16, 16)
            for the 5B.
        prompts: Turns prompts into conditions; a copy that trains has none.
        decode: Turns latents into videos in [0, 1], with shape :math:`(B, 3, F, H, W)`.
        shift: The shift recommended; 3 up to 832 x 480 pixels and 5 above by default.

    Raises:
        ValueError: If the size does not fit, or the network takes more than latents.
    """

    layout = WAN

    def __init__(
        self,
        transformer: Any,
        *,
        height: int = 480,
        width: int = 832,
        frames: int = 81,
        compression: tuple[int, int, int] = (4, 8, 8),
        prompts: Prompts | None = None,
        decode: Callable[[Latents], Tensor] | None = None,
        shift: float | None = None,
    ) -> None:
        config = transformer.config
        if config.in_channels != config.out_channels:
            raise ValueError(
                f"this transformer takes {config.in_channels} channels and makes "
                f"{config.out_channels}, so it needs a first image; take WanImageTeacher "
                "(wan_i2v)"
            )
        latent_shape = video_shape(config, height, width, frames, compression)
        super().__init__(
            transformer,
            latent_shape=latent_shape,
            shift=default_shift(height, width) if shift is None else shift,
            prompts=prompts,
            decode=decode,
        )
        self.size: dict[str, Any] = {
            "height": height,
            "width": width,
            "frames": frames,
            "compression": compression,
        }

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        height: int = 480,
        width: int = 832,
        frames: int = 81,
        shift: float | None = None,
        prompts: Sequence[str] = (),
        embeddings: Prompts | None = None,
        dtype: str | torch.dtype = "bfloat16",
        device: str | torch.device = "cpu",
        meta: bool = False,
    ) -> WanTeacher | RoutedTeacher:
        """Loads the transformers of a pipeline; text encoder and VAE follow when first used.

        Args:
            folder: The pipeline's folder or hub name, such as
                ``"Wan-AI/Wan2.2-T2V-A14B-Diffusers"``.
            height: Height of a video.
            width: Width of a video.
            frames: Its frames.
            shift: The shift recommended; by default by the resolution.
            prompts: What a distillation draws from.
            embeddings: Turns prompts into conditions in place of the text encoder.
            dtype: Type of all weights; those of the time's embedding stay in float32.
            device: Where they live.
            meta: Whether to leave the transformers' weights on the meta device.

        Returns:
            A teacher of one network, or of two behind their boundary.

        Raises:
            ValueError: If a part is missing, or another encoder made the embeddings.
        """
        places: dict[str, Any] = {"dtype": dtype, "device": device}
        compression = compression_of(folder)
        text = prompts_of(embeddings, _encoded_text(folder, prompts, places))
        decode = decoder("AutoencoderKLWan", folder, **places)

        def make(transformer: Any) -> WanTeacher:
            return cls(
                transformer,
                height=height,
                width=width,
                frames=frames,
                compression=compression,
                prompts=text,
                decode=decode,
                shift=shift,
            )

        return load_networks(make, folder, meta=meta, **places)

    @classmethod
    def from_config(
        cls,
        *,
        height: int = 480,
        width: int = 832,
        frames: int = 81,
        boundary_ratio: float = 0.875,
        num_layers: int = 40,
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        ffn_dim: int = 13824,
        text_dim: int = 4096,
        latent_channels: int = 16,
        spatial_compression: int = 8,
        random_prompts: int = 8,
        text_length: int = 512,
        embeddings: Prompts | None = None,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device = "cpu",
        meta: bool = False,
        seed: int = 0,
    ) -> WanTeacher | RoutedTeacher:
        """Makes a teacher with random weights; by default the 2.2 A14B, of full size.

        For tests and measurements of cost: without ``embeddings`` its prompts have random
        embeddings too (:meth:`~pdmd.teachers.conditioning.prompts.PromptEmbeddings.random`).

        Args:
            height: Height of a video.
            width: Width of a video.
            frames: Its frames.
            boundary_ratio: The lowest time of the first of two networks; 0 makes one.
            num_layers: Blocks.
            num_attention_heads: Heads of a block.
            attention_head_dim: Dimension of a head, even and at least 6.
            ffn_dim: Width of a block's perceptron.
            text_dim: Dimension of a token of text.
            latent_channels: Channels of the latents; 48 in the 5B.
            spatial_compression: Pixels to one latent in height and width; 16 in the 5B.
            random_prompts: How many prompts, besides none.
            text_length: Tokens of their embeddings.
            embeddings: Turns prompts into conditions instead.
            dtype: Type of the weights.
            device: Where they live.
            meta: Whether to make them without memory, on the meta device.
            seed: Seed of weights and embeddings.
        """
        check_head(attention_head_dim, 6)
        config = {
            "num_layers": num_layers,
            "num_attention_heads": num_attention_heads,
            "attention_head_dim": attention_head_dim,
            "ffn_dim": ffn_dim,
            "text_dim": text_dim,
            "in_channels": latent_channels,
            "out_channels": latent_channels,
        }
        if embeddings is None:
            embeddings = PromptEmbeddings.random(
                random_prompts, length=text_length, dim=text_dim, masked=False, seed=seed
            )

        def make(transformer: Any) -> WanTeacher:
            return cls(
                transformer,
                height=height,
                width=width,
                frames=frames,
                compression=(4, spatial_compression, spatial_compression),
                prompts=embeddings,
            )

        places: dict[str, Any] = {"dtype": dtype, "device": device, "meta": meta}
        return build_networks(make, config, boundary_ratio, seed=seed, **places)

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates the transformer at 1000 times the time."""
        rows = self.conditioned(condition, x_t)
        dtype = self.transformer.dtype
        value = self.transformer(
            hidden_states=x_t.to(dtype),
            timestep=(1000 * t).float(),
            encoder_hidden_states=rows["prompt"].to(dtype),
            return_dict=False,
        )[0]
        return value.to(x_t.dtype)


def _encoded_text(
    folder: str | Path, prompts: Sequence[str], places: dict[str, Any]
) -> EncodedText:
    def embed(pipeline: Any, texts: list[str]) -> Any:
        from tensordict import TensorDict

        embeddings, _ = pipeline.encode_prompt(
            texts, do_classifier_free_guidance=False, max_sequence_length=512
        )
        return TensorDict({"prompt": embeddings}, batch_size=[len(texts)])

    load = partial(load_text_encoder, "WanPipeline", folder, **places)
    return EncodedText(load, embed, prompts=prompts, null="", folder=folder)
