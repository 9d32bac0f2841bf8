"""Parts of diffusers' pipelines: their transformers, with weights or without, and configurations.

A pipeline is named by a folder that its ``save_pretrained`` wrote, or by its name on the hub.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdmd.teachers.families.pipeline_checks import (
    UnusableWeights,
    check_index,
    check_tensor,
    check_values,
    check_weights,
    variant_of,
)
from pdmd.typing import Latents

__all__ = [
    "build_part",
    "configuration",
    "decoder",
    "dtype_of",
    "load_text_encoder",
    "load_transformer",
]


NOT_TEXT = (
    "transformer",
    "transformer_2",
    "unet",
    "vae",
    "safety_checker",
    "feature_extractor",
    "image_encoder",
)
"""Parts of pipelines that encode no prompts."""

FORMER_NAMES = {"DiTTransformer2DModel": "Transformer2DModel"}
"""Classes that folders still call by an older name."""


def dtype_of(dtype: str | torch.dtype) -> torch.dtype:
    """Returns a floating-point type by name.

    Raises:
        ValueError: If it is none.
    """
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ValueError(f"a dtype is float32, bfloat16 or float16, got {dtype!r}")
    return found


def build_part(
    name: str,
    config: Mapping[str, Any],
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    meta: bool = False,
    seed: int = 0,
) -> Any:
    """Makes a model of diffusers with random weights.

    Args:
        name: Its class.
        config: Its arguments.
        dtype: Type of its weights; parts that the family keeps in float32 stay so.
        device: Where they live.
        meta: Whether to make weights without memory, on the meta device.
        seed: Seed of the weights.
    """
    import diffusers

    cls = getattr(diffusers, name)
    place = torch.device("meta" if meta else device)
    default = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        torch.manual_seed(seed)
        torch.set_default_dtype(dtype_of(dtype))  # weights need never exist in float32
        try:
            with place:
                model = cls.from_config(dict(config))
        finally:
            torch.set_default_dtype(default)
    kept = set(cls._keep_in_fp32_modules or ())
    for path, parameter in model.named_parameters():
        if kept & set(path.split(".")):
            parameter.data = parameter.data.float()
    return model.eval()


def load_transformer(
    name: str,
    folder: str | Path,
    subfolder: str,
    *,
    dtype: str | torch.dtype = "bfloat16",
    device: str | torch.device = "cpu",
    meta: bool = False,
) -> Any:
    """Loads the transformer of a pipeline, one tensor after the other.

    What it computes when it is made, such as tables of positions, is left on the meta device and
    must be computed again.

    Args:
        name: Its class.
        folder: The pipeline's folder or hub name.
        subfolder: The model's place in it.
        dtype: Type of its weights; parts that the family keeps in float32 stay so.
        device: Where they live.
        meta: Whether to leave the weights out and make them on the meta device.

    Raises:
        ValueError: If there is none, or one of another class.
    """
    config = configuration(name, folder, subfolder)
    found = config.get("_class_name", name)
    if found not in (name, FORMER_NAMES.get(name)):
        raise ValueError(
            f"{folder}/{subfolder} is a {found}, and this teacher's is a {name}; name the teacher "
            "of its family"
        )
    check_index(folder, name)
    check_values(folder, config)
    model = build_part(name, config, dtype=dtype, meta=True)
    if meta:
        return model
    ignored = type(model)._keys_to_ignore_on_load_unexpected or ()
    types = {path: tensor.dtype for path, tensor in model.state_dict().items()}
    state = {}
    place = f"{folder}/{subfolder}" if subfolder else str(folder)
    if subfolder:
        check_weights(folder, (subfolder,))
    with _reporting(folder, subfolder):
        for path, tensor in _tensors(folder, subfolder):
            if not any(re.search(pattern, path) for pattern in ignored):
                check_tensor(place, path, tensor, types.get(path))
                state[path] = tensor.to(device=device, dtype=types.get(path))
        model.load_state_dict(state, assign=True)
    return model


def configuration(name: str, folder: str | Path, subfolder: str | None = None) -> dict[str, Any]:
    """Reads the configuration of a pipeline, or of one of its parts.

    Args:
        name: The class.
        folder: The pipeline's folder or hub name.
        subfolder: The part's place in it; ``None`` for the pipeline.

    Raises:
        ValueError: If there is none.
    """
    import diffusers

    with _reporting(folder, subfolder):
        return dict(getattr(diffusers, name).load_config(str(folder), subfolder=subfolder))


def load_text_encoder(
    name: str,
    folder: str | Path,
    *,
    optional: Sequence[str] = (),
    vae: bool = False,
    dtype: str | torch.dtype = "bfloat16",
    device: str | torch.device = "cpu",
) -> Any:
    """Loads a pipeline without its transformers and VAE, to encode prompts with.

    Args:
        name: The pipeline's class.
        folder: Its folder or hub name.
        optional: Parts that are ``None`` where the folder has none.
        vae: Whether to load the VAE too, which encodes images.
        dtype: Type of the text encoder's weights.
        device: Where they live.

    Raises:
        ValueError: If there is none.
    """
    import diffusers

    cls = getattr(diffusers, name)
    known = inspect.signature(cls.__init__).parameters
    seeing = ("vae", "image_encoder", "feature_extractor") if vae else ()
    parts = [part for part in NOT_TEXT if part not in seeing]
    absent: dict[str, Any] = {part: None for part in parts if part in known}
    if "unet" in known:
        absent["scheduler"] = None
    if "requires_safety_checker" in known:
        absent["requires_safety_checker"] = False
    if optional:
        index = configuration(name, folder)
        absent |= {part: None for part in optional if (index.get(part) or [None])[0] is None}
    check_index(folder)
    seen = [part for part in ("vae", "image_encoder") if part in seeing]
    check_weights(folder, ("text_encoder*", *seen))
    variant = variant_of(folder, "text_encoder", "model")
    more: dict[str, Any] = {"use_safetensors": True, **({"variant": variant} if variant else {})}
    with _reporting(folder, "text_encoder"):
        pipeline = cls.from_pretrained(str(folder), dtype=dtype_of(dtype), **more, **absent)
    return pipeline.to(device)


def decoder(
    name: str,
    folder: str | Path,
    *,
    dtype: str | torch.dtype = "bfloat16",
    device: str | torch.device = "cpu",
) -> Callable[[Latents], Tensor]:
    """Returns what turns normalised latents into pictures; the VAE is loaded when first asked.

    Latents are those that the network sees: the VAE's own less a mean and over a deviation, each
    one number a channel (``latents_mean``, ``latents_std``) or one for all (``shift_factor``,
    ``scaling_factor``). A VAE that takes a time (``timestep_conditioning``) decodes at time 0.

    Args:
        name: The VAE's class.
        folder: The pipeline's folder or hub name.
        dtype: Type of its weights.
        device: Where they live.

    Returns:
        A function of latents of shape :math:`(B, C, H, W)` to images in [0, 1], of latents of
        shape :math:`(B, C, F, H, W)` to videos.
    """
    loaded: list[Any] = []

    @torch.no_grad()
    def decode(x: Latents) -> Tensor:
        if not loaded:
            import diffusers

            cls = getattr(diffusers, name)
            check_weights(folder, ("vae",))
            variant = variant_of(folder, "vae", "diffusion_pytorch_model")
            with _reporting(folder, "vae"):
                vae = cls.from_pretrained(
                    str(folder),
                    subfolder="vae",
                    dtype=dtype_of(dtype),
                    use_safetensors=True,
                    variant=variant,
                )
            loaded.append(vae.to(device).eval())
        vae = loaded[0]
        mean, std = _latent_moments(vae, x)
        z = (x * std + mean).to(vae.dtype)
        time = {"temb": z.new_zeros(len(z))} if vae.config.get("timestep_conditioning") else {}
        pictures = vae.decode(z, **time, return_dict=False)[0]
        return (pictures.float() / 2 + 0.5).clamp(0, 1)

    return decode


def _latent_moments(vae: Any, x: Latents) -> tuple[Tensor, Tensor]:
    """Returns mean and deviation of a VAE's latents, to multiply and add to ``x``."""
    known = {**vae.config, **dict(vae.named_buffers())}  # either may hold them
    mean, std = known.get("latents_mean"), known.get("latents_std")
    if mean is None or std is None:
        mean, std = [known.get("shift_factor") or 0.0], [1.0]
    view = (1, -1, *(1,) * (x.ndim - 2))
    mean, std = (
        torch.as_tensor(value, device=x.device, dtype=x.dtype).view(view) for value in (mean, std)
    )
    return mean, std / known.get("scaling_factor", 1.0)


def _tensors(folder: str | Path, subfolder: str) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    place = Path(folder)
    if not place.is_dir():
        from huggingface_hub import snapshot_download

        name = f"{subfolder}/" * bool(subfolder) + "diffusion_pytorch_model"
        wanted = [f"{name}.safetensors*", f"{name}-*.safetensors"]  # no other formats or variants
        place = Path(snapshot_download(str(folder), allow_patterns=wanted))
    stem = place / subfolder / "diffusion_pytorch_model.safetensors"
    shards = stem.with_name(f"{stem.name}.index.json")
    names = {stem.name}
    if variant := variant_of(place, subfolder, "diffusion_pytorch_model"):
        found = [path.name for path in stem.parent.glob(f"{stem.stem}*.safetensors")]
        names = {name for name in found if variant in name}
    elif shards.is_file():
        names = set(json.loads(shards.read_text())["weight_map"].values())
    for file in sorted(names):
        with safe_open(str(stem.with_name(file)), framework="pt") as opened:
            for path in opened.keys():
                yield path, opened.get_tensor(path)


@contextlib.contextmanager
def _reporting(folder: str | Path, subfolder: str | None = None) -> Iterator[None]:
    """Turns what loading raises for a missing or damaged folder into one sentence."""
    from safetensors import SafetensorError

    try:
        yield
    except UnusableWeights:
        raise
    except (OSError, KeyError, TypeError, RuntimeError, ValueError, SafetensorError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        part = f"{folder}/{subfolder}" if subfolder else str(folder)
        raise ValueError(
            f"cannot load {part} ({first}); give a folder that a diffusers pipeline's "
            "save_pretrained wrote, or its name on the hub"
        ) from error
