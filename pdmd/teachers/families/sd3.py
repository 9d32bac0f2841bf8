r"""Stable Diffusion 3 and 3.5: text-to-image transformers of 2 B to 8 B parameters.

The network takes :math:`1000 \sigma` as its time and predicts the velocity
:math:`\varepsilon - x_0` of latents of shape :math:`(16, H / 8, W / 8)`. Two CLIP encoders and T5
read the text: CLIP's tokens, side by side and filled up to T5's dimension, come before T5's, and
CLIP's pooled vectors, side by side, are the second input. No token is masked. Guidance is the
classical extrapolation, and the shift of time is 3 at every size.

References:
    Esser et al., Scaling Rectified Flow Transformers, arXiv:2403.03206.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdmd.teachers.conditioning.prompts import EncodedText, PromptEmbeddings, Prompts, prompts_of
from pdmd.teachers.families.layouts import SD3
from pdmd.teachers.families.pipelines import (
    build_part,
    configuration,
    decoder,
    load_text_encoder,
    load_transformer,
)
from pdmd.teachers.families.text import TextTeacher
from pdmd.teachers.families.tokens import check_size, scheduled_shift
from pdmd.typing import Condition, Latents

__all__ = ["SD3Teacher"]


class SD3Teacher(TextTeacher):
    r"""Stable Diffusion 3 or 3.5 over latents of shape :math:`(16, H / 8, W / 8)`.

    Every time in [0, 1] can be asked. Conditions have ``prompt`` and ``pooled``. Guidance that
    skips layers is not supported.

    Args:
        transformer: A ``SD3Transformer2DModel`` of diffusers.
        height: Height of an image, a multiple of the compression times the network's patch (16).
        width: Width of an image, likewise.
        compression: Pixels to one latent in height and width.
        prompts: Turns prompts into conditions; a copy that trains has none.
        decode: Turns latents into images in [0, 1], with shape :math:`(B, 3, H, W)`.
        shift: The shift of time recommended.

    Raises:
        ValueError: If the size does not fit, or is larger than the network's table of positions.
    """

    layout = SD3
    entries = ("prompt", "pooled")

    def __init__(
        self,
        transformer: Any,
        *,
        height: int = 1024,
        width: int = 1024,
        compression: int = 8,
        prompts: Prompts | None = None,
        decode: Callable[[Latents], Tensor] | None = None,
        shift: float = 3.0,
    ) -> None:
        config = transformer.config
        pixels = compression * config.patch_size
        check_size(pixels, height=height, width=width)
        if max(height, width) > pixels * config.pos_embed_max_size:
            raise ValueError(
                f"this network's table of positions ends at {pixels * config.pos_embed_max_size} "
                f"pixels, got an image of {height} x {width}"
            )
        super().__init__(
            transformer,
            latent_shape=(config.in_channels, height // compression, width // compression),
            shift=shift,
            prompts=prompts,
            decode=decode,
        )
        self.size: dict[str, Any] = {"height": height, "width": width, "compression": compression}

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        height: int = 1024,
        width: int = 1024,
        text_length: int = 256,
        prompts: Sequence[str] = (),
        embeddings: Prompts | None = None,
        dtype: str | torch.dtype = "bfloat16",
        device: str | torch.device = "cpu",
        meta: bool = False,
    ) -> SD3Teacher:
        """Loads the transformer of a pipeline; text encoders and VAE follow when first used.

        Args:
            folder: The pipeline's folder or hub name, such as
                ``"stabilityai/stable-diffusion-3.5-medium"``.
            height: Height of an image.
            width: Width of an image.
            text_length: Tokens that T5 reads, filled up or cut off.
            prompts: What a distillation draws from.
            embeddings: Turns prompts into conditions in place of the text encoders.
            dtype: Type of all weights.
            device: Where they live.
            meta: Whether to leave the transformer's weights on the meta device.

        Raises:
            ValueError: If a part is missing or another family's.
        """
        places: dict[str, Any] = {"dtype": dtype, "device": device}
        transformer = load_transformer(
            "SD3Transformer2DModel", folder, "transformer", meta=meta, **places
        )
        scheduler = configuration("FlowMatchEulerDiscreteScheduler", folder, "scheduler")
        vae = configuration("AutoencoderKL", folder, "vae")
        compression = 2 ** (len(vae["block_out_channels"]) - 1)
        tokens = height * width // (compression * transformer.config.patch_size) ** 2
        teacher = cls(
            transformer,
            height=height,
            width=width,
            compression=compression,
            prompts=prompts_of(embeddings, _encoded_text(folder, prompts, text_length, places)),
            decode=decoder("AutoencoderKL", folder, **places),
            shift=scheduled_shift(scheduler, tokens),
        )
        if meta:
            teacher.reset_tables(device)
        return teacher

    @classmethod
    def from_config(
        cls,
        *,
        height: int = 1024,
        width: int = 1024,
        num_layers: int = 24,
        num_attention_heads: int = 24,
        attention_head_dim: int = 64,
        joint_attention_dim: int = 4096,
        pooled_projection_dim: int = 2048,
        latent_channels: int = 16,
        pos_embed_max_size: int = 192,
        qk_norm: str | None = None,
        dual_attention_layers: Sequence[int] = (),
        random_prompts: int = 8,
        text_length: int = 333,
        embeddings: Prompts | None = None,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device = "cpu",
        meta: bool = False,
        seed: int = 0,
    ) -> SD3Teacher:
        """Makes a teacher with random weights; by default the 3 Medium, of full size.

        For tests and measurements of cost: without ``embeddings`` its prompts have random
        embeddings too (:meth:`~pdmd.teachers.conditioning.prompts.PromptEmbeddings.random`).

        Args:
            height: Height of an image.
            width: Width of an image.
            num_layers: Blocks.
            num_attention_heads: Heads of a block.
            attention_head_dim: Dimension of a head.
            joint_attention_dim: Dimension of a token of text.
            pooled_projection_dim: Dimension of the pooled text.
            latent_channels: Channels of the latents.
            pos_embed_max_size: Side of the table of positions, in patches.
            qk_norm: Norm of queries and keys; ``"rms_norm"`` in the 3.5.
            dual_attention_layers: Blocks with a second attention; the first 13 of the 3.5 Medium.
            random_prompts: How many prompts, besides none.
            text_length: Tokens of their embeddings; 77 of CLIP and 256 of T5.
            embeddings: Turns prompts into conditions instead.
            dtype: Type of the weights.
            device: Where they live.
            meta: Whether to make them without memory, on the meta device.
            seed: Seed of weights and embeddings.
        """
        config = {
            "in_channels": latent_channels,
            "out_channels": latent_channels,
            "num_layers": num_layers,
            "num_attention_heads": num_attention_heads,
            "attention_head_dim": attention_head_dim,
            "joint_attention_dim": joint_attention_dim,
            "caption_projection_dim": num_attention_heads * attention_head_dim,
            "pooled_projection_dim": pooled_projection_dim,
            "pos_embed_max_size": pos_embed_max_size,
            "qk_norm": qk_norm,
            "dual_attention_layers": tuple(dual_attention_layers),
        }
        transformer = build_part(
            "SD3Transformer2DModel", config, dtype=dtype, device=device, meta=meta, seed=seed
        )
        if embeddings is None:
            embeddings = PromptEmbeddings.random(
                random_prompts,
                length=text_length,
                dim=joint_attention_dim,
                masked=False,
                more={"pooled": (pooled_projection_dim,)},
                seed=seed,
            )
        teacher = cls(transformer, height=height, width=width, prompts=embeddings)
        if meta:
            teacher.reset_tables(device)
        return teacher

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates the transformer at 1000 times the time."""
        rows = self.conditioned(condition, x_t)
        dtype = self.transformer.dtype
        value = self.transformer(
            hidden_states=x_t.to(dtype),
            timestep=(1000 * t).float(),
            encoder_hidden_states=rows["prompt"].to(dtype),
            pooled_projections=rows["pooled"].to(dtype),
            return_dict=False,
        )[0]
        return value.to(x_t.dtype)

    def reset_tables(self, device: str | torch.device = "cpu") -> None:
        """Computes the table of positions again, for a transformer from the meta device."""
        config, embed = self.transformer.config, self.transformer.pos_embed
        side, patch = config.sample_size, config.patch_size
        with torch.device(device):
            # a single channel in, since only the table is wanted
            new = type(embed)(
                height=side,
                width=side,
                patch_size=patch,
                in_channels=1,
                embed_dim=self.transformer.inner_dim,
                pos_embed_max_size=config.pos_embed_max_size,
            )
        embed.pos_embed = new.pos_embed


def _encoded_text(
    folder: str | Path, prompts: Sequence[str], text_length: int, places: dict[str, Any]
) -> EncodedText:
    def load() -> Any:
        optional = ("text_encoder_3", "tokenizer_3")
        pipeline = load_text_encoder(
            "StableDiffusion3Pipeline", folder, optional=optional, **places
        )
        if pipeline.text_encoder_3 is None:  # whose dimension it then asks of its transformer
            config = configuration("SD3Transformer2DModel", folder, "transformer")
            empty = build_part("SD3Transformer2DModel", config | {"num_layers": 0}, meta=True)
            pipeline.register_modules(transformer=empty)
        return pipeline

    def embed(pipeline: Any, texts: list[str]) -> Any:
        from tensordict import TensorDict

        embeddings, _, pooled, _ = pipeline.encode_prompt(
            texts,
            None,
            None,
            device=pipeline.text_encoder.device,
            do_classifier_free_guidance=False,
            max_sequence_length=text_length,
        )
        entries = {"prompt": embeddings, "pooled": pooled}
        return TensorDict(entries, batch_size=[len(texts)])

    how = {"text_length": text_length}
    return EncodedText(load, embed, prompts=prompts, null="", folder=folder, how=how)
