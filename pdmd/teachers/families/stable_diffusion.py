r"""Stable Diffusion 1.x and 2.x: text-to-image UNets over latents of 4 channels.

The network takes the level 0 to 999 as its time
(:mod:`pdmd.teachers.families.discrete_timesteps`) and predicts :math:`\varepsilon`, or the
v-prediction :math:`\alpha_t \varepsilon - \sigma_t x_0` where the pipeline's scheduler says so.
Text is 77 tokens of CLIP, without a mask; no prompt is the empty text. Latents are the VAE's
times its ``scaling_factor``.

References:
    Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, arXiv:2112.10752.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pdmd.teachers.conditioning.prompts import EncodedText, PromptEmbeddings, Prompts, prompts_of
from pdmd.teachers.families.discrete_timesteps import noise_levels, read_levels
from pdmd.teachers.families.pipelines import (
    build_part,
    configuration,
    decoder,
    load_text_encoder,
    load_transformer,
)
from pdmd.teachers.families.unet import UNetTeacher, compression_of

__all__ = ["SCALED_LINEAR", "StableDiffusionTeacher"]

SCALED_LINEAR = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
"""The noise levels of Stable Diffusion and SDXL."""


class StableDiffusionTeacher(UNetTeacher):
    r"""Stable Diffusion over latents of shape :math:`(4, H / 8, W / 8)`.

    Arguments and errors are those of :class:`~pdmd.teachers.families.unet.UNetTeacher`. Levels
    reach from :math:`t = 0.001` to 1; pure noise is not among them unless the scheduler rescales
    its betas to zero terminal SNR.
    """

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
    ) -> StableDiffusionTeacher:
        """Loads the UNet of a pipeline; text encoder and VAE follow when first used.

        Args:
            folder: The pipeline's folder or hub name, such as
                ``"stable-diffusion-v1-5/stable-diffusion-v1-5"``.
            height: Height of an image; the network's own by default.
            width: Width of an image, likewise.
            prompts: What a distillation draws from.
            embeddings: Turns prompts into conditions in place of the text encoder.
            dtype: Type of all weights.
            device: Where they live.
            meta: Whether to leave the UNet's weights on the meta device.

        Raises:
            ValueError: If a part is missing or the network is not of this family.
        """
        places: dict[str, Any] = {"dtype": dtype, "device": device}
        schedule, kind = read_levels(folder)
        unet = load_transformer("UNet2DConditionModel", folder, "unet", meta=meta, **places)
        return cls(
            unet,
            schedule=schedule,
            kind=kind,
            height=height,
            width=width,
            compression=compression_of(configuration("AutoencoderKL", folder, "vae")),
            prompts=prompts_of(embeddings, _encoded_text(folder, prompts, places)),
            decode=decoder("AutoencoderKL", folder, **places),
        )

    @classmethod
    def from_config(
        cls,
        *,
        version: int = 1,
        height: int | None = None,
        width: int | None = None,
        channels: int = 320,
        layers_per_block: int = 2,
        heads: int | None = None,
        cross_attention_dim: int | None = None,
        norm_num_groups: int = 32,
        prediction_type: str | None = None,
        rescale_betas_zero_snr: bool = False,
        random_prompts: int = 8,
        text_length: int = 77,
        embeddings: Prompts | None = None,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device = "cpu",
        meta: bool = False,
        seed: int = 0,
    ) -> StableDiffusionTeacher:
        """Makes a teacher with random weights, of full size by default.

        For tests and measurements of cost: without ``embeddings`` its prompts have random
        embeddings too (:meth:`~pdmd.teachers.conditioning.prompts.PromptEmbeddings.random`).

        Args:
            version: 1 for 1.5 (epsilon at 512 pixels), 2 for 2.1 (v-prediction at 768).
            height: Height of an image; the version's by default.
            width: Width of an image, likewise.
            channels: Channels of the first block; the others have 2, 4 and 4 times as many.
            layers_per_block: Residual layers of a block.
            heads: Heads of every attention; the version's by default.
            cross_attention_dim: Dimension of a token of text; the version's by default.
            norm_num_groups: Groups of the norms; they divide the channels.
            prediction_type: ``epsilon``, ``v_prediction`` or ``sample``; the version's by default.
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
        if version not in (1, 2):
            raise ValueError(f"version is 1 or 2, got {version!r}")
        if channels < 1 or norm_num_groups < 1 or channels % norm_num_groups:
            raise ValueError(
                f"channels are a multiple of norm_num_groups, got {channels} and {norm_num_groups}"
            )
        widths = [channels * k for k in (1, 2, 4, 4)]
        dim = cross_attention_dim
        if dim is None:
            dim = {1: 768, 2: 1024}[version]
        own = 8 if version == 1 else [max(1, w // 64) for w in widths]
        config = {
            "sample_size": {1: 64, 2: 96}[version],
            "block_out_channels": widths,
            "layers_per_block": layers_per_block,
            "attention_head_dim": own
            if heads is None
            else heads,  # diffusers' name for the number of heads
            "cross_attention_dim": dim,
            "norm_num_groups": norm_num_groups,
            "use_linear_projection": version == 2,
        }
        unet = build_part(
            "UNet2DConditionModel", config, dtype=dtype, device=device, meta=meta, seed=seed
        )
        if embeddings is None:
            embeddings = PromptEmbeddings.random(
                random_prompts, length=text_length, dim=dim, masked=False, seed=seed
            )
        schedule, kind = noise_levels(
            {
                **SCALED_LINEAR,
                "prediction_type": prediction_type or {1: "epsilon", 2: "v_prediction"}[version],
                "rescale_betas_zero_snr": rescale_betas_zero_snr,
            }
        )
        return cls(
            unet, schedule=schedule, kind=kind, height=height, width=width, prompts=embeddings
        )


def _encoded_text(
    folder: str | Path, prompts: Sequence[str], places: dict[str, Any]
) -> EncodedText:
    def embed(pipeline: Any, texts: list[str]) -> Any:
        from tensordict import TensorDict

        device = pipeline.text_encoder.device
        embeddings, _ = pipeline.encode_prompt(texts, device, 1, False)
        return TensorDict({"prompt": embeddings}, batch_size=[len(texts)])

    load = partial(load_text_encoder, "StableDiffusionPipeline", folder, **places)
    return EncodedText(load, embed, prompts=prompts, null="", folder=folder)
