r"""Qwen-Image: a text-to-image transformer of 20 B parameters.

The network takes :math:`\sigma` as its time, which on rectified flow is ours, and predicts the
velocity :math:`\varepsilon - x_0`. It reads latents packed into tokens of :math:`2 \times 2`
pixels, text embeddings and their mask. Guidance restores every token's length,

.. math:: f_g = \tilde f_g \, \frac{\|f(x_t, t, c)\|}{\|\tilde f_g\|}, \qquad
    \tilde f_g = f(x_t, t, \varnothing) + g \, (f(x_t, t, c) - f(x_t, t, \varnothing)),

with norms over each token's channels. The shift of time grows with the number of tokens.

References:
    Wu et al., Qwen-Image Technical Report, arXiv:2508.02324.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdmd.teachers.conditioning.prompts import EncodedText, PromptEmbeddings, Prompts, prompts_of
from pdmd.teachers.families.layouts import QWEN_IMAGE
from pdmd.teachers.families.pipelines import (
    build_part,
    configuration,
    decoder,
    load_text_encoder,
    load_transformer,
)
from pdmd.teachers.families.text import TextTeacher
from pdmd.teachers.families.tokens import DynamicShift, check_head, check_size, scheduled_shift
from pdmd.teachers.families.tokens import pack as _pack
from pdmd.teachers.families.tokens import unpack as _unpack
from pdmd.typing import Condition, Latents

__all__ = ["DynamicShift", "QwenImageTeacher"]

COMPRESSION = 8
"""Pixels of an image to one of its latents, in height and width, of the released VAE."""


class QwenImageTeacher(TextTeacher):
    r"""Qwen-Image over latents of shape :math:`(16, H / 8, W / 8)`.

    Other VAEs of its class may compress a side by another power of two than 8.

    Every time in [0, 1] can be asked; the family's own sampler stops at 0.02.

    Args:
        transformer: A ``QwenImageTransformer2DModel`` of diffusers.
        height: Height of an image, a multiple of twice the compression: of 16.
        width: Width of an image, likewise.
        prompts: Turns prompts into conditions; a copy that trains has none.
        decode: Turns latents into images in [0, 1], with shape :math:`(B, 3, H, W)`.
        shift: The shift recommended; by default the family's own at this size.
        compression: Pixels of an image to one of its latents, in height and width.

    Raises:
        ValueError: If the size is no such multiple or the transformer distilled for guidance.
    """

    layout = QWEN_IMAGE

    def __init__(
        self,
        transformer: Any,
        *,
        height: int = 1024,
        width: int = 1024,
        prompts: Prompts | None = None,
        decode: Callable[[Latents], Tensor] | None = None,
        shift: float | None = None,
        compression: int = COMPRESSION,
    ) -> None:
        check_size(2 * compression, height=height, width=width)
        if transformer.config.guidance_embeds:
            raise ValueError(
                "this transformer takes guidance as an input (guidance_embeds); only those "
                "guided by two evaluations are supported"
            )
        tokens = height * width // (2 * compression) ** 2
        super().__init__(
            transformer,
            latent_shape=(
                transformer.config.in_channels // 4,
                height // compression,
                width // compression,
            ),
            shift=DynamicShift()(tokens) if shift is None else shift,
            prompts=prompts,
            decode=decode,
        )
        self.size = {"height": height, "width": width, "compression": compression}

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        height: int = 1024,
        width: int = 1024,
        prompts: Sequence[str] = (),
        embeddings: Prompts | None = None,
        dtype: str | torch.dtype = "bfloat16",
        device: str | torch.device = "cpu",
        meta: bool = False,
    ) -> QwenImageTeacher:
        """Loads the transformer of a pipeline; text encoder and VAE follow when first used.

        Args:
            folder: The pipeline's folder or hub name, such as ``"Qwen/Qwen-Image"``.
            height: Height of an image.
            width: Width of an image.
            prompts: What a distillation draws from.
            embeddings: Turns prompts into conditions in place of the text encoder.
            dtype: Type of all weights.
            device: Where they live.
            meta: Whether to leave the transformer's weights on the meta device.

        Raises:
            ValueError: If a part is missing, or another encoder made the embeddings.
        """
        places: dict[str, Any] = {"dtype": dtype, "device": device}
        scheduler = configuration("FlowMatchEulerDiscreteScheduler", folder, "scheduler")
        compression = _compression(folder)
        transformer = load_transformer(
            "QwenImageTransformer2DModel", folder, "transformer", meta=meta, **places
        )
        teacher = cls(
            transformer,
            height=height,
            width=width,
            prompts=prompts_of(embeddings, _encoded_text(folder, prompts, places)),
            decode=_decoder(folder, places),
            shift=scheduled_shift(scheduler, height * width // (2 * compression) ** 2),
            compression=compression,
        )
        teacher.reset_tables(device)
        return teacher

    @classmethod
    def from_config(
        cls,
        *,
        height: int = 1024,
        width: int = 1024,
        num_layers: int = 60,
        num_attention_heads: int = 24,
        attention_head_dim: int = 128,
        joint_attention_dim: int = 3584,
        latent_channels: int = 16,
        random_prompts: int = 8,
        text_length: int = 64,
        embeddings: Prompts | None = None,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device = "cpu",
        meta: bool = False,
        seed: int = 0,
    ) -> QwenImageTeacher:
        """Makes a teacher with random weights, of full size by default.

        For tests and measurements of cost: without ``embeddings`` its prompts have random
        embeddings too (:meth:`~pdmd.teachers.conditioning.prompts.PromptEmbeddings.random`).

        Args:
            height: Height of an image.
            width: Width of an image.
            num_layers: Blocks.
            num_attention_heads: Heads of a block.
            attention_head_dim: Dimension of a head, even and at least 8.
            joint_attention_dim: Dimension of a token of text.
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
            "out_channels": latent_channels,
            "num_layers": num_layers,
            "num_attention_heads": num_attention_heads,
            "attention_head_dim": attention_head_dim,
            "joint_attention_dim": joint_attention_dim,
            "axes_dims_rope": (attention_head_dim - 2 * side, side, side),
        }
        transformer = build_part(
            "QwenImageTransformer2DModel",
            config,
            dtype=dtype,
            device=device,
            meta=meta,
            seed=seed,
        )
        if embeddings is None:
            embeddings = PromptEmbeddings.random(
                random_prompts, length=text_length, dim=joint_attention_dim, masked=True, seed=seed
            )
        teacher = cls(transformer, height=height, width=width, prompts=embeddings)
        if meta:
            teacher.reset_tables(device)
        return teacher

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Packs, evaluates and unpacks; the time is the network's own."""
        rows = self.conditioned(condition, x_t)
        height, width = x_t.shape[-2:]
        mask = rows.get("mask", None)
        if mask is not None and bool(mask.all()):  # lets attention run without one
            mask = None
        dtype = self.transformer.dtype
        value = self.transformer(
            hidden_states=_pack(x_t).to(dtype),
            timestep=t.float(),
            encoder_hidden_states=rows["prompt"].to(dtype),
            encoder_hidden_states_mask=mask,
            img_shapes=[[(1, height // 2, width // 2)]] * len(x_t),
            return_dict=False,
        )[0]
        return _unpack(value, height, width).to(x_t.dtype)

    def guide(
        self, conditional: Latents, unconditional: Latents, scale: float | Tensor
    ) -> Latents:
        """Extrapolates, then restores every token's length to the conditional prediction's."""
        combined = _pack(super().guide(conditional, unconditional, scale))
        length = _pack(conditional).norm(dim=-1, keepdim=True)
        rescaled = combined * (length / combined.norm(dim=-1, keepdim=True))
        return _unpack(rescaled, *conditional.shape[-2:])

    def reset_tables(self, device: str | torch.device = "cpu") -> None:
        """Computes the tables of positions again, for a transformer from the meta device."""
        rope = self.transformer.pos_embed
        with torch.device(device):
            self.transformer.pos_embed = type(rope)(rope.theta, rope.axes_dim, rope.scale_rope)


def _encoded_text(
    folder: str | Path, prompts: Sequence[str], places: dict[str, Any]
) -> EncodedText:
    def embed(pipeline: Any, texts: list[str]) -> Any:
        from tensordict import TensorDict

        embeddings, mask = pipeline.encode_prompt(texts)
        if mask is None:  # the pipeline's word for a mask of ones
            mask = embeddings.new_ones(embeddings.shape[:2])
        entries = {"prompt": embeddings, "mask": mask.bool()}
        return TensorDict(entries, batch_size=[len(texts)])

    load = partial(load_text_encoder, "QwenImagePipeline", folder, **places)
    return EncodedText(load, embed, prompts=prompts, null=" ", folder=folder)


def _compression(folder: str | Path) -> int:
    if (configuration("QwenImagePipeline", folder).get("vae") or [None])[0] is None:
        return COMPRESSION  # the folder has no VAE, and latents are the released one's
    vae = configuration("AutoencoderKLQwenImage", folder, "vae")
    return 2 ** len(vae["temperal_downsample"])


def _decoder(folder: str | Path, places: dict[str, Any]) -> Callable[[Latents], Tensor]:
    decode = decoder("AutoencoderKLQwenImage", folder, **places)
    return lambda x: decode(x[:, :, None])[:, :, 0]  # an image is a video of one frame
