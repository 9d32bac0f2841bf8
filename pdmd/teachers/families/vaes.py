"""VAEs of pipelines: their encoders, decoders and compression.

Weights are loaded when a sample is first encoded or decoded, often after a whole training. So what
would fail then is refused before: configurations and the headers of files are read at once.
"""

from __future__ import annotations

import inspect
import math
import re
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdmd.distributed.weight_files import WeightFiles
from pdmd.extras import require
from pdmd.teachers.families.pipeline_checks import (
    UnusableWeights,
    check_tensors,
    check_weights,
    read_index,
    stored_part,
    variant_of,
    weight_paths,
)
from pdmd.teachers.families.pipelines import build_part, configuration, dtype_argument, reporting
from pdmd.typing import Latents

__all__ = [
    "check_channels",
    "check_vae",
    "compression_of",
    "encode_pixels",
    "load_decoder",
    "load_latent_encoder",
    "load_vae",
]

STEM = "diffusion_pytorch_model"
AGAIN = "download or save the pipeline again"

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

    Raises:
        ValueError: As :func:`check_vae`.
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

    Raises:
        ValueError: As :func:`check_vae`.
    """
    loaded: list[Any] = []
    if not _is_of_another_family(name, folder):
        check_vae(name, folder)

    def load() -> Any:
        if not loaded:
            require("diffusers", "diffusers")
            import diffusers

            cls = getattr(diffusers, name)
            check_vae(name, folder)
            variant = variant_of(folder, "vae", STEM)
            with reporting(folder, "vae"):
                vae = cls.from_pretrained(
                    str(folder),
                    subfolder="vae",
                    **dtype_argument(dtype),
                    use_safetensors=True,
                    variant=variant,
                )
            if not Path(folder).is_dir():  # of the hub, and downloaded by now
                check_vae(name, folder)
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

    Raises:
        ValueError: As :func:`check_vae`.
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


def check_vae(name: str, folder: str | Path) -> None:
    """Checks a pipeline's VAE by its configuration and the headers of its files.

    Neither are weights read, nor anything is downloaded: of the hub, what is in the local cache is
    checked. A VAE without weights passes with a warning, as stored embeddings train without one; a
    folder of configurations alone, to plan with, passes without.

    Args:
        name: The VAE's class.
        folder: The pipeline's folder or hub name; one whose index states no VAE passes.

    Raises:
        ValueError: If it is missing or of another class, its configuration has no moments of
            latents, or its files lack some weights or have quantised ones.
    """
    place = stored_part(folder, "vae")
    if place is None or (not place.is_dir() and _states_none(folder)):
        return
    config = configuration(name, place.parent, "vae")
    found = config.get("_class_name", name)
    if found != name:
        raise UnusableWeights(
            f"the VAE of {folder} is an {found}, and this teacher's is an {name}; give a pipeline "
            "with the VAE of its release"
        )
    check_weights(folder, ("vae",))
    paths = weight_paths(place, STEM, variant_of(folder, "vae", STEM), shards_first=True)
    missing = [path.name for path in paths if not path.is_file()]
    if missing and len(paths) > 1 and Path(folder).is_dir():
        raise UnusableWeights(f"the VAE of {folder} lacks its file {missing[0]}; {AGAIN}")
    if missing and any(Path(folder).glob("*/*.safetensors")):
        warnings.warn(
            f"the VAE of {folder} has no weights ({missing[0]}), so that no sample is decoded; "
            "download them before samples are needed",
            stacklevel=2,
        )
    with reporting(folder, "vae"):
        vae = build_part(name, config, meta=True)
        _check_moments(vae, f"{folder}/vae/config.json")
        if not (missing or config.get("quantization_config")):  # of which diffusers takes care
            check = partial(_check_forms, vae, f"{folder}/vae")
            WeightFiles(lambda: paths, check).open()


def check_channels(name: str, folder: str | Path, channels: int) -> None:
    """Checks that a pipeline's VAE decodes what its network samples, if it is on this disk.

    Args:
        name: The VAE's class.
        folder: The pipeline's folder or hub name.
        channels: Channels of the network's latents.

    Raises:
        ValueError: If the VAE's latents have other channels.
    """
    place = stored_part(folder, "vae")
    known = place is not None and (place / "config.json").is_file()
    config = configuration(name, folder, "vae") if known else {}
    own = config.get("z_dim", config.get("latent_channels"))
    packed = 4 if name == "AutoencoderKLFlux2" else 1  # its pixels, by two
    if own and packed * own != channels:
        raise UnusableWeights(
            f"the VAE of {folder} has latents of {own} channels, and the network's have "
            f"{channels // packed}; give a pipeline with the VAE of its release"
        )


def _is_of_another_family(name: str, folder: str | Path) -> bool:
    """Returns whether a folder is a pipeline of other VAEs, as the check of its network says."""
    index = read_index(folder) if Path(folder).is_dir() else {}
    if (index.get("vae") or [None, name])[1] == name:
        return False
    import diffusers

    try:
        pipeline: Any = getattr(diffusers, str(index.get("_class_name")))
        taken = inspect.signature(pipeline.__init__).parameters["vae"].annotation
    except Exception:  # of many classes; no pipeline that is known here
        return False
    return not re.search(rf"\b{name}\b", str(taken))


def _states_none(folder: str | Path) -> bool:
    index = read_index(folder)
    return bool(index) and (index.get("vae") or [None])[0] is None


def _check_moments(vae: Any, place: str) -> None:
    """Checks the numbers by which a VAE's latents are normalised."""
    config = vae.config
    channels = config.get("z_dim", config.get("latent_channels"))
    counts = {"scaling_factor": 1} if "scaling_factor" in config else {}
    counts |= {"shift_factor": 1} if config.get("shift_factor") is not None else {}
    lists = ("latents_mean", "latents_std")
    if all(config.get(key) is not None for key in lists):
        counts |= dict.fromkeys(lists, channels)
    for key, count in counts.items():
        value = config[key]
        values = list(value) if isinstance(value, list | tuple) else [value]
        numbers = all(isinstance(v, int | float) and math.isfinite(v) for v in values)
        divided = key in ("scaling_factor", "latents_std")
        if len(values) != count or not numbers or (divided and 0 in values):
            wanted = f"{count} finite numbers" if count > 1 else "a finite number"
            raise UnusableWeights(
                f"{place} has {key} = {value!r:.80}, which is not {wanted}"
                f"{' other than 0' * divided}; {AGAIN}"
            )


def _check_forms(vae: Any, place: str, forms: Mapping[str, Tensor]) -> None:
    """Checks names, shapes and types of a VAE's stored tensors, of which some may be unused."""
    outline, name = vae.state_dict(), type(vae).__name__
    stored = dict(forms)
    vae._fix_state_dict_keys_on_load(stored)  # names of attentions in early releases
    check_tensors(place, stored, {path: tensor.dtype for path, tensor in outline.items()})
    lacking = sorted(outline.keys() - stored.keys())
    lacking = [path for path in lacking if not path.endswith("num_batches_tracked")]
    if lacking:
        raise UnusableWeights(
            f"the files of {place} lack weights of an {name}: {', '.join(lacking[:3])} "
            f"({len(lacking)} in all); {AGAIN}"
        )
    for path, tensor in outline.items():
        if path in stored and stored[path].shape != tensor.shape:
            raise UnusableWeights(
                f"{path} of {place} has the shape {tuple(stored[path].shape)} in its file, and "
                f"{tuple(tensor.shape)} by its config.json; {AGAIN}"
            )


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
    like = {"device": x.device, "dtype": x.dtype}
    mean, std = (torch.as_tensor(value, **like).view(view) for value in (mean, std))
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
