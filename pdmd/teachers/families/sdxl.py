r"""SDXL: text-to-image UNets of 2.6 B parameters over latents of 4 channels.

As Stable Diffusion (:mod:`pdmd.teachers.families.stable_diffusion`), with text of two encoders
side by side, the second's pooled embedding, and six numbers for the size: height and width of the
training image, top and left of its crop, height and width of the target. They are (H, W, 0, 0, H,
W) here, as in the family's pipeline. No prompt is an embedding of zeros where the pipeline states
``force_zeros_for_empty_prompt``, as the base model does, and the empty text elsewhere; an empty
text that is given as a prompt is always encoded.

References:
    Podell et al., SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis,
    arXiv:2307.01952.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pdmd.files import own_digest
from pdmd.teachers.conditioning.prompts import EncodedText, PromptEmbeddings, Prompts, prompts_of
from pdmd.teachers.families.discrete_timesteps import noise_levels, read_levels
from pdmd.teachers.families.pipelines import (
    build_part,
    configuration,
    decoder,
    dtype_of,
    load_text_encoder,
    load_transformer,
)
from pdmd.teachers.families.stable_diffusion import SCALED_LINEAR
from pdmd.teachers.families.unet import UNetTeacher, compression_of
from pdmd.typing import Latents

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = ["SDXLTeacher", "ZeroedNull"]


class SDXLTeacher(UNetTeacher):
    r"""SDXL over latents of shape :math:`(4, H / 8, W / 8)`.

    Conditions have ``prompt`` of shape :math:`(B, 77, 2048)` and ``pooled`` of shape
    :math:`(B, 1280)`. Arguments and errors are those of
    :class:`~pdmd.teachers.families.unet.UNetTeacher`. The refiner, which carries on from the base
    model's samples, is not supported.
    """

    added = "text_time"

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        height: int | None = None,
        width: int | None = None,
        prompts: Sequence[str] = (),
        embeddings: Prompts | None = None,
        dtype: str | torch.dtype = "bfloat16",
        device: str | torch.device = "cpu",
        meta: bool = False,
    ) -> SDXLTeacher:
        """Loads the UNet of a pipeline; text encoders and VAE follow when first used.

        A VAE that overflows in float16 (``force_upcast``) is kept in float32 in its place.

        Args:
            folder: The pipeline's folder or hub name, such as
                ``"stabilityai/stable-diffusion-xl-base-1.0"``.
            height: Height of an image; the network's own by default.
            width: Width of an image, likewise.
            prompts: What a distillation draws from.
            embeddings: Turns prompts into conditions in place of the text encoders.
            dtype: Type of all weights.
            device: Where they live.
            meta: Whether to leave the UNet's weights on the meta device.

        Raises:
            ValueError: If a part is missing or the network is not of this family.
        """
        places: dict[str, Any] = {"dtype": dtype, "device": device}
        index = configuration("StableDiffusionXLPipeline", folder)
        if index.get("requires_aesthetics_score"):
            raise ValueError(
                f"{folder} is a refiner, which starts from samples; give a base model"
            )
        schedule, kind = read_levels(folder)
        unet = load_transformer("UNet2DConditionModel", folder, "unet", meta=meta, **places)
        vae = configuration("AutoencoderKL", folder, "vae")
        upcast = dtype_of(dtype) == torch.float16 and vae.get("force_upcast", True)
        zeros = index.get("force_zeros_for_empty_prompt", True)
        text = prompts_of(embeddings, _encoded_text(folder, prompts, places, zeros=zeros))
        return cls(
            unet,
            schedule=schedule,
            kind=kind,
            height=height,
            width=width,
            compression=compression_of(vae),
            prompts=text,
            decode=decoder(
                "AutoencoderKL", folder, dtype="float32" if upcast else dtype, device=device
            ),
        )

    @classmethod
    def from_config(
        cls,
        *,
        height: int | None = None,
        width: int | None = None,
        channels: int = 320,
        layers_per_block: int = 2,
        middle_layers: int = 2,
        deep_layers: int = 10,
        cross_attention_dim: int = 2048,
        pooled_dim: int = 1280,
        size_dim: int = 256,
        norm_num_groups: int = 32,
        prediction_type: str = "epsilon",
        rescale_betas_zero_snr: bool = False,
        random_prompts: int = 8,
        text_length: int = 77,
        embeddings: Prompts | None = None,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device = "cpu",
        meta: bool = False,
        seed: int = 0,
    ) -> SDXLTeacher:
        """Makes a teacher with random weights, of full size by default.

        For tests and measurements of cost: without ``embeddings`` its prompts have random
        embeddings too (:meth:`~pdmd.teachers.conditioning.prompts.PromptEmbeddings.random`).

        Args:
            height: Height of an image, 1024 by default.
            width: Width of an image, likewise.
            channels: Channels of the first block; the others have 2 and 4 times as many.
            layers_per_block: Residual layers of a block.
            middle_layers: Transformer layers of an attention of the second block.
            deep_layers: Transformer layers of one of the third block.
            cross_attention_dim: Dimension of a token of text.
            pooled_dim: Dimension of the pooled embedding.
            size_dim: Dimension in which each number of the size is embedded.
            norm_num_groups: Groups of the norms; they divide the channels.
            prediction_type: ``epsilon``, ``v_prediction`` or ``sample``.
            rescale_betas_zero_snr: Whether the last level is pure noise.
            random_prompts: How many prompts, besides none.
            text_length: Tokens of their embeddings.
            embeddings: Turns prompts into conditions instead.
            dtype: Type of the weights.
            device: Where they live.
            meta: Whether to make them without memory, on the meta device.
            seed: Seed of weights and embeddings.

        Raises:
            ValueError: If an argument is off.
        """
        if channels < 1 or norm_num_groups < 1 or channels % norm_num_groups:
            raise ValueError(
                f"channels are a multiple of norm_num_groups, got {channels} and {norm_num_groups}"
            )
        widths = [channels * k for k in (1, 2, 4)]
        config = {
            "sample_size": 128,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "block_out_channels": widths,
            "layers_per_block": layers_per_block,
            "transformer_layers_per_block": [1, middle_layers, deep_layers],
            "attention_head_dim": [max(1, w // 64) for w in widths],  # the number of heads
            "cross_attention_dim": cross_attention_dim,
            "norm_num_groups": norm_num_groups,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": size_dim,
            "projection_class_embeddings_input_dim": 6 * size_dim + pooled_dim,
        }
        unet = build_part(
            "UNet2DConditionModel", config, dtype=dtype, device=device, meta=meta, seed=seed
        )
        if embeddings is None:
            embeddings = _random(
                random_prompts, text_length, cross_attention_dim, pooled_dim, seed
            )
        schedule, kind = noise_levels(
            {
                **SCALED_LINEAR,
                "prediction_type": prediction_type,
                "rescale_betas_zero_snr": rescale_betas_zero_snr,
            }
        )
        return cls(
            unet, schedule=schedule, kind=kind, height=height, width=width, prompts=embeddings
        )

    @classmethod
    def check_network(cls, config: Any) -> None:
        super().check_network(config)
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        if pooled < 1:
            raise ValueError(
                "this UNet does not take six numbers for the size, "
                f"got projection_class_embeddings_input_dim = "
                f"{config.projection_class_embeddings_input_dim}"
            )

    def added_inputs(self, rows: Any, x_t: Latents) -> dict[str, Tensor]:
        """Returns the pooled text and the size."""
        size = (self.height, self.width)
        ids = torch.tensor([*size, 0, 0, *size], dtype=torch.float32, device=x_t.device)
        pooled = rows["pooled"].to(self.transformer.dtype)
        return {"text_embeds": pooled, "time_ids": ids.expand(len(x_t), -1)}


class ZeroedNull(Prompts):
    """Prompts whose ``None`` is an embedding of zeros.

    Args:
        inner: What encodes the others.
    """

    def __init__(self, inner: Prompts) -> None:
        self.inner = inner

    @property
    def prompts(self) -> Sequence[str]:
        """The prompts of what encodes them."""
        return self.inner.prompts

    def fingerprint(self) -> str | None:
        """The encoder's, made another by the zeros."""
        inner = self.inner.fingerprint()
        return None if inner is None else own_digest({"encoder": inner, "null": "zeros"})

    def encode(self, prompts: Sequence[str | None]) -> TensorDict:
        """Encodes, then zeroes the rows without a prompt."""
        condition = self.inner.encode(prompts)
        given = torch.tensor([prompt is not None for prompt in prompts])

        def zeroed(value: Tensor) -> Tensor:
            kept = given.to(value.device).reshape(-1, *(1,) * (value.ndim - 1))
            return torch.where(kept, value, torch.zeros_like(value))

        return condition.apply(zeroed)


def _random(number: int, length: int, dim: int, pooled_dim: int, seed: int) -> PromptEmbeddings:
    text = PromptEmbeddings.random(number, length=length, dim=dim, masked=False, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    text.condition["pooled"] = torch.randn(
        number + 1, pooled_dim, generator=generator, device="cpu"
    )
    return text


def _encoded_text(
    folder: str | Path, prompts: Sequence[str], places: dict[str, Any], *, zeros: bool
) -> Prompts:
    def embed(pipeline: Any, texts: list[str]) -> Any:
        from tensordict import TensorDict

        device = pipeline.text_encoder_2.device
        tokens, _, pooled, _ = pipeline.encode_prompt(
            texts, device=device, do_classifier_free_guidance=False
        )
        return TensorDict({"prompt": tokens, "pooled": pooled}, batch_size=[len(texts)])

    load = partial(load_text_encoder, "StableDiffusionXLPipeline", folder, **places)
    text = EncodedText(load, embed, prompts=prompts, null="", folder=folder)
    return ZeroedNull(text) if zeros else text
