r"""Workflows for ComfyUI of a student's LoRA files, in the format of its API.

The workflow loads the base's files, puts each adapter over its network, and samples with the
student's timesteps as sigmas, by Euler steps without guidance. A sampler that ends at noise
:math:`\sigma` returns :math:`x_\sigma / (1 - \sigma)`, which the next, without noise of its own,
multiplies by :math:`1 - \sigma` again (``noise_scaling`` of flow models), so that the steps of a
phase go on where those of the phase before ended. The names of the base's files are placeholders;
ComfyUI shows them as missing until they are chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["FAMILIES", "workflow"]

_IMAGE = {"width": 1024, "height": 1024, "batch_size": 1}
_VIDEO = {"width": 832, "height": 480, "length": 81, "batch_size": 1}

FAMILIES: Mapping[str, tuple[tuple[str, ...], str, str, Mapping[str, int]]] = {
    "QwenImagePipeline": (("text_encoder",), "qwen_image", "EmptySD3LatentImage", _IMAGE),
    "StableDiffusion3Pipeline": (
        ("clip_l", "clip_g", "t5xxl"),
        "sd3",
        "EmptySD3LatentImage",
        _IMAGE,
    ),
    "FluxPipeline": (("clip_l", "t5xxl"), "flux", "EmptySD3LatentImage", _IMAGE),
    "ZImagePipeline": (("text_encoder",), "lumina2", "EmptySD3LatentImage", _IMAGE),
    "WanPipeline": (("umt5_xxl",), "wan", "EmptyHunyuanLatentVideo", _VIDEO),
    "LTXPipeline": (("t5xxl",), "ltxv", "EmptyLTXVLatentVideo", _VIDEO),
}
"""Text encoders, their type in ComfyUI, and the node and size of empty latents, by pipeline."""

SIZES = {"height": "height", "width": "width", "num_frames": "length"}
"""The inputs of empty latents, by the arguments of a pipeline's call."""


def workflow(
    pipeline: str,
    files: Sequence[str],
    bases: Sequence[str],
    grids: Sequence[Sequence[float]],
    *,
    call: Mapping[str, Any],
    video: bool = False,
) -> dict[str, Any] | None:
    """Returns a workflow as JSON for ComfyUI's API.

    Args:
        pipeline: The class of the family's pipeline in diffusers.
        files: The adapters' files, in the order of sampling.
        bases: The file of the network that each adapts.
        grids: The timesteps of each from its first to the first of the next, or to 0.
        call: The arguments of the pipeline's call: size, frame rate, and the embedded guidance of
            Flux.
        video: Whether samples are videos.

    Returns:
        The nodes by number, or ``None`` if the family is not of :data:`FAMILIES`.
    """
    if pipeline not in FAMILIES:
        return None
    encoders, kind, latent, default = FAMILIES[pipeline]
    size = {**default, **{SIZES[name]: call[name] for name in SIZES if name in call}}
    nodes: dict[str, Any] = {}

    def add(name: str, **inputs: Any) -> list[Any]:
        nodes[str(len(nodes) + 1)] = {"class_type": name, "inputs": inputs}
        return [str(len(nodes)), 0]

    names = {f"clip_name{i + 1}": f"{name}.safetensors" for i, name in enumerate(encoders)}
    if len(encoders) == 1:
        clip = add("CLIPLoader", clip_name=names["clip_name1"], type=kind)
    elif len(encoders) == 2:
        clip = add("DualCLIPLoader", **names, type=kind)
    else:
        clip = add("TripleCLIPLoader", **names)  # of Stable Diffusion 3 alone
    vae = add("VAELoader", vae_name="vae.safetensors")
    positive = add("CLIPTextEncode", clip=clip, text="a cat that holds a sign")
    if "guidance_scale" in call:
        positive = add(
            "FluxGuidance", conditioning=positive, guidance=float(call["guidance_scale"])
        )
    negative = add("ConditioningZeroOut", conditioning=positive)
    if "frame_rate" in call:
        rate = float(call["frame_rate"])
        positive = add("LTXVConditioning", positive=positive, negative=negative, frame_rate=rate)
        negative = [positive[0], 1]
    sampler = add("KSamplerSelect", sampler_name="euler")
    x = add(latent, **size)
    loaded = {
        base: add("UNETLoader", unet_name=base, weight_dtype="default")
        for base in dict.fromkeys(bases)
    }
    for i, (file, base, grid) in enumerate(zip(files, bases, grids, strict=True)):
        model = add("LoraLoaderModelOnly", model=loaded[base], lora_name=file, strength_model=1.0)
        sigmas = add("ManualSigmas", sigmas=", ".join(map(_decimal, grid)))
        x = add(
            "SamplerCustom",
            model=model,
            add_noise=i == 0,
            noise_seed=0,
            cfg=1.0,
            positive=positive,
            negative=negative,
            sampler=sampler,
            sigmas=sigmas,
            latent_image=x,
        )
    pictures = add("VAEDecode", samples=x, vae=vae)
    if video:
        made = add("CreateVideo", images=pictures, fps=float(call.get("frame_rate", 16)))
        add("SaveVideo", video=made, filename_prefix="pdmd", format="auto", codec="auto")
    else:
        add("SaveImage", images=pictures, filename_prefix="pdmd")
    return nodes


def _decimal(t: float) -> str:
    """Returns a time without exponent, of which ComfyUI would read two numbers."""
    text = f"{t:.8f}".rstrip("0")
    return text.removesuffix(".")
