"""VAEs of pipelines: their encoders, decoders and compression."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdmd.extras import require
from pdmd.teachers.families.pipeline_checks import check_weights, variant_of
from pdmd.teachers.families.pipelines import configuration, dtype_argument, reporting
from pdmd.typing import Latents

__all__ = ["compression_of", "encode_pixels", "load_decoder", "load_latent_encoder", "load_vae"]

Compression = int | tuple[int, int, int]


def compression_of(name: str, folder: str | Path) -> Compression:
    """Returns the pixels to one latent of a pipeline's VAE.

    Args:
        name: The VAE's class.
        folder: The pipeline's folder or hub name.

    Returns:
        One number for the sides of an image, or three for time, height and width of a video.

    Raises:
        ValueError: If there is no VAE, or its class is not known.
    """
    if name not in _COMPRESSIONS:
        raise ValueError(
            f"the compression of a {name} is not known; state it in the family's read_options"
        )
    return _COMPRESSIONS[name](configuration(name, folder, "vae"))


def load_decoder(
    name: str,
    folder: str | Path,
    *,
    dtype: str | torch.dtype = "bfloat16",
    device: str | torch.device = "cpu",
) -> Callable[[Latents], Tensor]:
    """Returns the map from normalised latents to pictures; the VAE is loaded on the first call.

    The network's latents are the VAE's own, less a mean and over a deviation, each one number a
    channel (``latents_mean``, ``latents_std``) or one for all (``shift_factor``,
    ``scaling_factor``). Where a batch norm states them (FLUX.2), it is of pixels packed by two,
    which are unpacked. A VAE that takes a time (``timestep_conditioning``) decodes at time 0.

    Args:
        name: The VAE's class.
        folder: The pipeline's folder or hub name.
        dtype: Type of its weights.
        device: Where they live.

    Returns:
        A function of latents of shape :math:`(B, C, H, W)` to images in [0, 1], of latents of
        shape :math:`(B, C, F, H, W)` to videos.
    """
    load = load_vae(name, folder, dtype=dtype, device=device)

    @torch.no_grad()
    def decode(x: Latents) -> Tensor:
        vae = load()
        mean, std = _latent_moments(vae, x)
        z = (x * std + mean).to(vae.dtype)
        if hasattr(vae, "bn"):
            z = torch.pixel_shuffle(z, 2)
        time = {"temb": z.new_zeros(len(z))} if vae.config.get("timestep_conditioning") else {}
        pictures = vae.decode(z, **time, return_dict=False)[0]
        return (pictures.float() / 2 + 0.5).clamp(0, 1)

    return decode


def load_vae(
    name: str,
    folder: str | Path,
    *,
    dtype: str | torch.dtype = "bfloat16",
    device: str | torch.device = "cpu",
) -> Callable[[], Any]:
    """Returns a function that returns a pipeline's VAE, and loads it on the first call.

    Args:
        name: The VAE's class.
        folder: The pipeline's folder or hub name.
        dtype: Type of its weights.
        device: Where they live.
    """
    loaded: list[Any] = []

    def load() -> Any:
        if not loaded:
            require("diffusers", "diffusers")
            import diffusers

            cls = getattr(diffusers, name)
            check_weights(folder, ("vae",))
            variant = variant_of(folder, "vae", "diffusion_pytorch_model")
            with reporting(folder, "vae"):
                vae = cls.from_pretrained(
                    str(folder),
                    subfolder="vae",
                    **dtype_argument(dtype),
                    use_safetensors=True,
                    variant=variant,
                )
            loaded.append(vae.to(device).eval())
        return loaded[0]

    return load


def load_latent_encoder(
    name: str,
    folder: str | Path,
    *,
    dtype: str | torch.dtype = "bfloat16",
    device: str | torch.device = "cpu",
) -> Callable[[Tensor], Latents]:
    """Returns the map from pictures to normalised latents; the VAE is loaded on the first call.

    It is the inverse of :func:`load_decoder` up to the VAE's own error: the mode of the VAE's
    posterior, less its mean and over its deviation.

    Args:
        name: The VAE's class.
        folder: The pipeline's folder or hub name.
        dtype: Type of its weights, and of the latents.
        device: Where they live.

    Returns:
        A function of pixels in [0, 1], of shape :math:`(B, 3, H, W)` or :math:`(B, 3, F, H, W)`.
    """
    load = load_vae(name, folder, dtype=dtype, device=device)

    def encode(pixels: Tensor) -> Latents:
        return encode_pixels(load(), 2 * pixels.to(device) - 1)

    return encode


@torch.no_grad()
def encode_pixels(vae: Any, pixels: Tensor) -> Latents:
    """Encodes pictures by a VAE, to normalised latents in its type.

    Args:
        vae: The VAE.
        pixels: Pictures in [-1, 1], of the shape that the VAE takes.
    """
    found = vae.encode(pixels.to(vae.dtype))
    z = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latent
    z = z.float()
    if hasattr(vae, "bn"):
        z = torch.pixel_unshuffle(z, 2)
    mean, std = _latent_moments(vae, z)
    return ((z - mean) / std).to(vae.dtype)


def _latent_moments(vae: Any, x: Latents) -> tuple[Tensor, Tensor]:
    """Returns mean and deviation of a VAE's latents, broadcast to ``x``."""
    known = {**vae.config, **dict(vae.named_buffers())}  # stored in either
    mean, std = known.get("latents_mean"), known.get("latents_std")
    if hasattr(vae, "bn"):
        mean, variance = vae.bn.running_mean, vae.bn.running_var
        std = (variance + vae.config.batch_norm_eps).sqrt()
    if mean is None or std is None:
        mean, std = [known.get("shift_factor") or 0.0], [1.0]
    view = (1, -1, *(1,) * (x.ndim - 2))
    mean, std = (
        torch.as_tensor(value, device=x.device, dtype=x.dtype).view(view) for value in (mean, std)
    )
    return mean, std / known.get("scaling_factor", 1.0)


def _image(vae: Mapping[str, Any]) -> int:
    return 2 ** (len(vae.get("block_out_channels", (0,) * 4)) - 1)


def _deep(vae: Mapping[str, Any]) -> int:
    return 2 ** (len(vae.get("encoder_block_out_channels", (0,) * 6)) - 1)


def _cogvideox(vae: Mapping[str, Any]) -> tuple[int, int, int]:
    space = _image(vae)
    return int(vae.get("temporal_compression_ratio", 4)), space, space


def _hunyuan(vae: Mapping[str, Any], space: int = 8) -> tuple[int, int, int]:
    space = vae.get("spatial_compression_ratio", space)
    return vae.get("temporal_compression_ratio", 4), space, space


def _qwen_image(vae: Mapping[str, Any]) -> int:
    return 2 ** len(vae["temperal_downsample"])


def _wan(vae: Mapping[str, Any]) -> tuple[int, int, int]:
    time, space = vae.get("scale_factor_temporal", 4), vae.get("scale_factor_spatial", 8)
    return time, space, space


def _ltx(vae: Mapping[str, Any]) -> tuple[int, int, int]:
    halvings = sum(vae.get("spatio_temporal_scaling", (True, True, True, False)))
    time, space = vae.get("temporal_compression_ratio"), vae.get("spatial_compression_ratio")
    time = time or vae.get("patch_size_t", 1) * 2**halvings
    space = space or vae.get("patch_size", 4) * 2**halvings
    return time, space, space


_COMPRESSIONS: Mapping[str, Callable[[Mapping[str, Any]], Compression]] = {
    "AutoencoderDC": _deep,
    "AutoencoderKL": _image,
    "AutoencoderKLFlux2": _image,
    "AutoencoderKLHunyuanVideo": _hunyuan,
    "AutoencoderKLHunyuanVideo15": partial(_hunyuan, space=16),
    "AutoencoderKLCogVideoX": _cogvideox,
    "AutoencoderKLQwenImage": _qwen_image,
    "AutoencoderKLWan": _wan,
    "AutoencoderKLLTXVideo": _ltx,
    "AutoencoderKLLTX2Video": _ltx,
}
