r"""Flux.1: text-to-image transformers of 12 B parameters.

The network takes :math:`\sigma` as its time, which on rectified flow is ours, and predicts the
velocity :math:`\varepsilon - x_0`. It reads latents packed into tokens of :math:`2 \times 2`
pixels and their positions, T5's tokens, without a mask, and CLIP's pooled vector. The dev weights
were distilled for guidance: they take its strength as an input, 3.5 by default, and cost one
evaluation. That is no extrapolation between two predictions, which
:class:`~pdmd.teachers.guided.Guided` adds where it is wanted, by the classical rule (what the
family's pipeline calls true guidance). The schnell weights take no such input.

The shift of time grows with the number of tokens for dev, and is 1 for schnell.

References:
    Black Forest Labs, FLUX.1, https://github.com/black-forest-labs/flux.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdmd.teachers.conditioning.prompts import EncodedText, PromptEmbeddings, Prompts, prompts_of
from pdmd.teachers.families.layouts import FLUX
from pdmd.teachers.families.pipelines import (
    build_part,
    configuration,
    decoder,
    load_text_encoder,
    load_transformer,
)
from pdmd.teachers.families.text import TextTeacher
from pdmd.teachers.families.tokens import (
    DynamicShift,
    check_head,
    check_size,
    pack,
    scheduled_shift,
    unpack,
)
from pdmd.typing import Condition, Latents

__all__ = ["FluxTeacher"]

SHIFT = DynamicShift(
    base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
)
"""The shift of the dev weights."""


class FluxTeacher(TextTeacher):
    r"""Flux.1 over latents of shape :math:`(16, H / 8, W / 8)`.

    Every time in [0, 1] can be asked. Conditions have ``prompt`` and ``pooled``.

    Args:
        transformer: A ``FluxTransformer2DModel`` of diffusers.
        height: Height of an image, a multiple of twice the compression (16).
        width: Width of an image, likewise.
        compression: Pixels to one latent in height and width.
        guidance_embedded: The strength of guidance that a transformer distilled for it takes as
            an input; 3.5 by default, and nothing for one that takes none.
        prompts: Turns prompts into conditions; a copy that trains has none.
        decode: Turns latents into images in [0, 1], with shape :math:`(B, 3, H, W)`.
        shift: The shift of time recommended; by default the dev weights' for this size, and 1
            for a transformer that takes no guidance.

    Raises:
        ValueError: If the size is no multiple of 16, or guidance is given to a transformer that
            takes none, or is not finite.
    """

    layout = FLUX
    entries = ("prompt", "pooled")

    def __init__(
        self,
        transformer: Any,
        *,
        height: int = 1024,
        width: int = 1024,
        compression: int = 8,
        guidance_embedded: float | None = None,
        prompts: Prompts | None = None,
        decode: Callable[[Latents], Tensor] | None = None,
        shift: float | None = None,
    ) -> None:
        config = transformer.config
        check_size(2 * compression, height=height, width=width)
        takes = bool(config.guidance_embeds)
        if guidance_embedded is not None and not takes:
            raise ValueError(
                f"this transformer takes no guidance as an input, got guidance_embedded = "
                f"{guidance_embedded}; leave it out, and guide by two evaluations if at all"
            )
        if guidance_embedded is None and takes:
            guidance_embedded = 3.5
        if guidance_embedded is not None and not math.isfinite(guidance_embedded):
            raise ValueError(f"guidance_embedded is a finite number, got {guidance_embedded}")
        if shift is None:
            shift = SHIFT(height * width // (2 * compression) ** 2) if takes else 1.0
        super().__init__(
            transformer,
            latent_shape=(config.in_channels // 4, height // compression, width // compression),
            shift=shift,
            prompts=prompts,
            decode=decode,
        )
        self.size: dict[str, Any] = {"height": height, "width": width, "compression": compression}
        self.guidance_embedded = guidance_embedded

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        height: int = 1024,
        width: int = 1024,
        guidance_embedded: float | None = None,
        text_length: int | None = None,
        prompts: Sequence[str] = (),
        embeddings: Prompts | None = None,
        dtype: str | torch.dtype = "bfloat16",
        device: str | torch.device = "cpu",
        meta: bool = False,
    ) -> FluxTeacher:
        """Loads the transformer of a pipeline; text encoders and VAE follow when first used.

        Args:
            folder: The pipeline's folder or hub name, such as ``"black-forest-labs/FLUX.1-dev"``.
            height: Height of an image.
            width: Width of an image.
            guidance_embedded: As the class takes it.
            text_length: Tokens that T5 reads, filled up or cut off; by default 512, and 256 for
                a transformer that takes no guidance.
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
            "FluxTransformer2DModel", folder, "transformer", meta=meta, **places
        )
        scheduler = configuration("FlowMatchEulerDiscreteScheduler", folder, "scheduler")
        vae = configuration("AutoencoderKL", folder, "vae")
        compression = 2 ** (len(vae["block_out_channels"]) - 1)
        length = text_length
        if length is None:
            length = 512 if transformer.config.guidance_embeds else 256
        return cls(
            transformer,
            height=height,
            width=width,
            compression=compression,
            guidance_embedded=guidance_embedded,
            prompts=prompts_of(embeddings, _encoded_text(folder, prompts, length, places)),
            decode=decoder("AutoencoderKL", folder, **places),
            shift=scheduled_shift(scheduler, height * width // (2 * compression) ** 2),
        )

    @classmethod
    def from_config(
        cls,
        *,
        height: int = 1024,
        width: int = 1024,
        guidance_embeds: bool = True,
        guidance_embedded: float | None = None,
        num_layers: int = 19,
        num_single_layers: int = 38,
        num_attention_heads: int = 24,
        attention_head_dim: int = 128,
        joint_attention_dim: int = 4096,
        pooled_projection_dim: int = 768,
        latent_channels: int = 16,
        random_prompts: int = 8,
        text_length: int = 512,
        embeddings: Prompts | None = None,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device = "cpu",
        meta: bool = False,
        seed: int = 0,
    ) -> FluxTeacher:
        """Makes a teacher with random weights; by default the dev one, of full size.

        For tests and measurements of cost: without ``embeddings`` its prompts have random
        embeddings too (:meth:`~pdmd.teachers.conditioning.prompts.PromptEmbeddings.random`).

        Args:
            height: Height of an image.
            width: Width of an image.
            guidance_embeds: Whether the transformer takes guidance as an input; not in schnell.
            guidance_embedded: As the class takes it.
            num_layers: Blocks of two streams.
            num_single_layers: Blocks of one stream.
            num_attention_heads: Heads of a block.
            attention_head_dim: Dimension of a head, even and at least 8.
            joint_attention_dim: Dimension of a token of text.
            pooled_projection_dim: Dimension of the pooled text.
            latent_channels: Channels of the latents.
            random_prompts: How many prompts, besides none.
            text_length: Tokens of their embeddings.
            embeddings: Turns prompts into conditions instead.
            dtype: Type of the weights.
            device: Where they live.
            meta: Whether to make them without memory, on the meta device.
            seed: Seed of weights and embeddings.
        """
        check_head(attention_head_dim, 8)
        side = 2 * (7 * attention_head_dim // 32)  # the released model's split: (16, 56, 56)
        config = {
            "in_channels": 4 * latent_channels,
            "num_layers": num_layers,
            "num_single_layers": num_single_layers,
            "num_attention_heads": num_attention_heads,
            "attention_head_dim": attention_head_dim,
            "joint_attention_dim": joint_attention_dim,
            "pooled_projection_dim": pooled_projection_dim,
            "guidance_embeds": guidance_embeds,
            "axes_dims_rope": (attention_head_dim - 2 * side, side, side),
        }
        transformer = build_part(
            "FluxTransformer2DModel", config, dtype=dtype, device=device, meta=meta, seed=seed
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
        return cls(
            transformer,
            height=height,
            width=width,
            guidance_embedded=guidance_embedded,
            prompts=embeddings,
        )

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Packs, evaluates and unpacks; the time is the network's own."""
        rows = self.conditioned(condition, x_t)
        height, width = x_t.shape[-2:]
        dtype, text = self.transformer.dtype, rows["prompt"]
        guidance = None
        if self.guidance_embedded is not None:
            guidance = torch.full_like(t, self.guidance_embedded, dtype=torch.float32)
        value = self.transformer(
            hidden_states=pack(x_t).to(dtype),
            timestep=t.float(),
            guidance=guidance,
            encoder_hidden_states=text.to(dtype),
            pooled_projections=rows["pooled"].to(dtype),
            img_ids=_positions(height // 2, width // 2, x_t.device),
            txt_ids=torch.zeros(text.shape[1], 3, device=x_t.device),
            return_dict=False,
        )[0]
        return unpack(value, height, width).to(x_t.dtype)

    @property
    def call_arguments(self) -> dict[str, Any]:
        guidance = self.guidance_embedded
        more: dict[str, Any] = {"max_sequence_length": 256}
        if guidance is not None:
            more = {"max_sequence_length": 512, "guidance_scale": guidance}
        return {**super().call_arguments, **more}

    def around(self, transformer: Any) -> FluxTeacher:
        return type(self)(
            transformer, guidance_embedded=self.guidance_embedded, shift=self.shift, **self.size
        )


def _positions(height: int, width: int, device: torch.device) -> Tensor:
    """Returns the positions of an image's tokens: nothing, row and column."""
    rows = torch.arange(height, dtype=torch.float32, device=device)
    columns = torch.arange(width, dtype=torch.float32, device=device)
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], -1).flatten(0, 1)


def _encoded_text(
    folder: str | Path, prompts: Sequence[str], text_length: int, places: dict[str, Any]
) -> EncodedText:
    def embed(pipeline: Any, texts: list[str]) -> Any:
        from tensordict import TensorDict

        embeddings, pooled, _ = pipeline.encode_prompt(texts, max_sequence_length=text_length)
        entries = {"prompt": embeddings, "pooled": pooled}
        return TensorDict(entries, batch_size=[len(texts)])

    load = partial(load_text_encoder, "FluxPipeline", folder, **places)
    how = {"text_length": text_length}
    return EncodedText(load, embed, prompts=prompts, null="", folder=folder, how=how)
