"""Tiny parts of LTX-2's pipeline beside its network and VAE: connectors, and decoders of sound."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from pdmd.teachers.families.tiny.encoders import gemma3_encoder
from pdmd.teachers.families.tiny.tiny_family import named_parts

__all__ = ["ltx2_parts"]


def ltx2_parts(
    dim: int, channels: int, *, registers: int = 8, gated: bool = False
) -> dict[str, Any]:
    """Builds the language model, connectors, VAE of sounds and vocoder of LTX-2.

    Args:
        dim: The dimension of a token of text.
        channels: The numbers of a token of sound.
        registers: The tokens of which texts have a multiple.
        gated: Whether to build the connectors of 2.3, whose video's tokens are twice as wide.
    """
    diffusers: Any = importlib.import_module("diffusers")
    ltx2: Any = importlib.import_module("diffusers.pipelines.ltx2")

    widths = {"video": 2 * dim if gated else dim, "audio": dim}
    heads: dict[str, Any] = {"per_modality_projections": gated}
    for stream, width in widths.items():
        heads[f"{stream}_hidden_dim"] = width
        heads[f"{stream}_gated_attn"] = gated
        heads[f"{stream}_connector_num_attention_heads"] = 2
        heads[f"{stream}_connector_attention_head_dim"] = width // 2
        heads[f"{stream}_connector_num_layers"] = 1
        heads[f"{stream}_connector_num_learnable_registers"] = registers
    torch.manual_seed(0)
    connectors = ltx2.LTX2TextConnectors(
        caption_channels=dim, text_proj_in_factor=3, rope_type="split", **heads
    )
    audio_vae = diffusers.AutoencoderKLLTX2Audio(
        base_channels=channels,
        ch_mult=(1, 1, 1),
        num_res_blocks=1,
        latent_channels=2,
        mel_bins=2 * channels,
    )
    audio_vae.latents_mean.copy_(torch.linspace(-0.5, 0.5, channels))
    audio_vae.latents_std.copy_(torch.linspace(0.5, 2.0, channels))
    vocoder = ltx2.LTX2Vocoder(
        in_channels=2 * 2 * channels,
        hidden_channels=8,
        upsample_kernel_sizes=[4],
        upsample_factors=[2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1]],
    )
    sounds = {"audio_vae": audio_vae.eval(), "vocoder": vocoder.eval()}
    return {**named_parts(gemma3_encoder(dim)), "connectors": connectors.eval(), **sounds}
