"""Tiny VAEs of the families' pipelines, with random weights."""

from __future__ import annotations

import importlib
from typing import Any

import torch

__all__ = [
    "cogvideox_vae",
    "deep_vae",
    "flux2_vae",
    "hunyuan15_vae",
    "hunyuan_vae",
    "image_vae",
    "ltx2_vae",
    "ltx_vae",
    "qwen_vae",
    "wan_vae",
]


def hunyuan15_vae(channels: int) -> Any:
    """Builds HunyuanVideo 1.5's VAE, which compresses by 4 in time and by 16 in space."""
    diffusers: Any = importlib.import_module("diffusers")

    torch.manual_seed(0)
    return diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=channels, block_out_channels=(8,) * 5, layers_per_block=1
    ).eval()


def image_vae(channels: int) -> Any:
    """Builds the VAE of images, which compresses by 8, of Flux, Stable Diffusion 3 and Z-Image."""
    diffusers: Any = importlib.import_module("diffusers")

    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4,
        norm_num_groups=2,
        layers_per_block=1,
        latent_channels=channels,
        sample_size=32,
        scaling_factor=1.5,
        shift_factor=0.06,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()


def cogvideox_vae(channels: int) -> Any:
    """Builds CogVideoX's VAE, which compresses by 4 in time and by 8 in space."""
    diffusers: Any = importlib.import_module("diffusers")

    torch.manual_seed(0)
    return diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(4,) * 4,
        latent_channels=channels,
        layers_per_block=1,
        norm_num_groups=2,
        scaling_factor=0.7,
    ).eval()


def deep_vae(channels: int) -> Any:
    """Builds SANA's autoencoder, which compresses by 32."""
    diffusers: Any = importlib.import_module("diffusers")

    torch.manual_seed(0)
    return diffusers.AutoencoderDC(
        latent_channels=channels,
        attention_head_dim=2,
        encoder_block_out_channels=(4,) * 6,
        decoder_block_out_channels=(4,) * 6,
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        encoder_qkv_multiscales=((),) * 6,
        decoder_qkv_multiscales=((),) * 6,
        scaling_factor=1.5,
    ).eval()


def flux2_vae(channels: int) -> Any:
    """Builds FLUX.2's VAE, which compresses by 8, and packs by 2 the latents it normalises.

    Args:
        channels: Those of the packed latents.
    """
    diffusers: Any = importlib.import_module("diffusers")

    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(4,) * 4,
        layers_per_block=1,
        latent_channels=channels // 4,
        norm_num_groups=2,
    ).eval()
    vae.bn.running_mean.copy_(torch.linspace(-0.5, 0.5, channels))
    vae.bn.running_var.copy_(torch.linspace(0.5, 2.0, channels))
    return vae


def hunyuan_vae(channels: int) -> Any:
    """Builds HunyuanVideo's VAE, of Kandinsky 5, which compresses by 4 in time and 8 in space."""
    diffusers: Any = importlib.import_module("diffusers")

    torch.manual_seed(0)
    return diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=channels,
        block_out_channels=(4,) * 4,
        layers_per_block=1,
        norm_num_groups=2,
    ).eval()


def qwen_vae(channels: int) -> Any:
    """Builds Qwen-Image's VAE."""
    diffusers: Any = importlib.import_module("diffusers")

    torch.manual_seed(0)
    return diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=channels,
        num_res_blocks=1,
        latents_mean=[0.1 * i for i in range(channels)],
        latents_std=[1 + 0.1 * i for i in range(channels)],
    ).eval()


def wan_vae(channels: int) -> Any:
    """Builds Wan's VAE, which compresses by 4 in time and by 8 in space."""
    diffusers: Any = importlib.import_module("diffusers")

    torch.manual_seed(0)
    return diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=channels,
        num_res_blocks=1,
        latents_mean=[0.1 * i for i in range(channels)],
        latents_std=[1 + 0.1 * i for i in range(channels)],
    ).eval()


def ltx2_vae(channels: int) -> Any:
    """Builds LTX-2's VAE, which compresses by 8 in time and by 32 in space."""
    diffusers: Any = importlib.import_module("diffusers")

    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLLTX2Video(
        latent_channels=channels,
        block_out_channels=(4, 8, 16, 32),
        decoder_block_out_channels=(8, 16, 32),
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 4,
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
        scaling_factor=1.5,
    ).eval()
    vae.latents_mean.copy_(torch.linspace(-0.5, 0.5, channels))
    vae.latents_std.copy_(torch.linspace(0.5, 2.0, channels))
    return vae


def ltx_vae(channels: int) -> Any:
    """Builds LTX-Video's VAE, which compresses by 8 in time and by 32 in space."""
    diffusers: Any = importlib.import_module("diffusers")

    torch.manual_seed(0)
    return diffusers.AutoencoderKLLTXVideo(
        latent_channels=channels,
        block_out_channels=(4,) * 4,
        decoder_block_out_channels=(4,) * 4,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        timestep_conditioning=False,
        scaling_factor=1.5,
    ).eval()
