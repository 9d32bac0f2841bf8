"""Released models: the sizes of pipelines on the hub, by name, to plan for them without the hub.

The sizes are those of ``from_config``, in place of what a family states as
``PipelineTeacher.released``. Texts have the length
to which the family's pipeline pads or cuts them.

A family's own sizes, and those here, are of the configuration published with the weights:
the defaults of the network's class in diffusers (FLUX.2 dev, Chroma, SANA 1.6 B), the conversion
scripts of diffusers (CogVideoX, Cosmos, LTX-2), or the authors' repository (FLUX.2 klein, SANA
0.6 B and 4.8 B, Kandinsky 5). Their numbers of parameters are compared with the published ones in
the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pdmd.teachers.base import teachers

__all__ = ["RELEASED", "equal_blocks", "released_arguments"]

_WAN_5B = {
    "num_layers": 30,
    "num_attention_heads": 24,
    "ffn_dim": 14336,
    "latent_channels": 48,
    "spatial_compression": 16,
    "boundary_ratio": 0.0,
}
_IMAGE = {"boundary_ratio": 0.0, "image_dim": 1280}
_SD35 = {"num_layers": 38, "num_attention_heads": 38, "qk_norm": "rms_norm"}
_SD35_MEDIUM = {
    "qk_norm": "rms_norm",
    "dual_attention_layers": tuple(range(13)),
    "pos_embed_max_size": 384,
}

_KLEIN_9B = {
    "num_layers": 8,
    "num_single_layers": 24,
    "num_attention_heads": 32,
    "joint_attention_dim": 12288,
}
_SANA_15 = {"qk_norm": "rms_norm_across_heads"}

RELEASED: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "Qwen/Qwen-Image": {"text_length": 512},
        "Qwen/Qwen-Image-2512": {"text_length": 512},
        "Qwen/Qwen-Image-Edit-2509": {"zero_cond_t": False, "text_length": 512},
        "Qwen/Qwen-Image-Edit-2511": {"text_length": 512},
        "Wan-AI/Wan2.2-T2V-A14B-Diffusers": {},
        "Wan-AI/Wan2.2-I2V-A14B-Diffusers": {},
        "Wan-AI/Wan2.2-TI2V-5B-Diffusers": _WAN_5B,
        "Wan-AI/Wan2.1-T2V-14B-Diffusers": {"boundary_ratio": 0.0},
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": {
            "num_layers": 30,
            "num_attention_heads": 12,
            "ffn_dim": 8960,
            "boundary_ratio": 0.0,
        },
        "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers": _IMAGE,
        "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers": _IMAGE,
        "black-forest-labs/FLUX.1-dev": {},
        "black-forest-labs/FLUX.1-schnell": {"guidance_embeds": False, "text_length": 256},
        "stabilityai/stable-diffusion-3-medium-diffusers": {},
        "stabilityai/stable-diffusion-3.5-medium": _SD35_MEDIUM,
        "stabilityai/stable-diffusion-3.5-large": _SD35,
        "Tongyi-MAI/Z-Image": {"text_length": 512},
        "Tongyi-MAI/Z-Image-Turbo": {"text_length": 512},
        "Lightricks/LTX-Video": {},
        "Lightricks/LTX-2": {},
        "diffusers/LTX-2.3-Diffusers": {"gated": True},
        "Efficient-Large-Model/Sana_1600M_1024px_diffusers": {},
        "Efficient-Large-Model/Sana_600M_1024px_diffusers": {
            "num_layers": 28,
            "num_attention_heads": 36,
            "num_cross_attention_heads": 16,
            "cross_attention_head_dim": 72,
        },
        "Efficient-Large-Model/SANA1.5_1.6B_1024px_diffusers": _SANA_15,
        "Efficient-Large-Model/SANA1.5_4.8B_1024px_diffusers": {**_SANA_15, "num_layers": 60},
        "lodestones/Chroma1-HD": {},
        "black-forest-labs/FLUX.2-dev": {},
        "black-forest-labs/FLUX.2-klein-4B": {},
        "black-forest-labs/FLUX.2-klein-base-4B": {},
        "black-forest-labs/FLUX.2-klein-9B": _KLEIN_9B,
        "black-forest-labs/FLUX.2-klein-base-9B": _KLEIN_9B,
        "zai-org/CogVideoX-2b": {
            "num_layers": 30,
            "num_attention_heads": 30,
            "use_rotary_positional_embeddings": False,
            "snr_shift_scale": 3.0,
        },
        "zai-org/CogVideoX-5b": {},
        "nvidia/Cosmos-Predict2.5-2B": {},
        "nvidia/Cosmos-Predict2.5-14B": {"num_layers": 36, "num_attention_heads": 40},
        "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v": {},
        "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-720p_t2v": {
            "target_size": 960,
            "height": 720,
            "width": 1280,
        },
        "kandinskylab/Kandinsky-5.0-T2V-Lite-sft-5s-Diffusers": {},
        "kandinskylab/Kandinsky-5.0-T2V-Pro-sft-5s-Diffusers": {
            "model_dim": 4096,
            "ff_dim": 16384,
            "time_dim": 1024,
            "num_text_blocks": 4,
            "num_visual_blocks": 60,
            "axes_dims": (32, 48, 48),
        },
        "kandinskylab/Kandinsky-5.0-T2I-Lite-sft-Diffusers": {},
        "zai-org/CogVideoX1.5-5B": {
            "patch_size_t": 2,
            "height": 768,
            "width": 1360,
            "frames": 85,
        },
    }
)
"""Sizes by the name of a pipeline on the hub, where they are not the family's own."""

_WEIGHTS = ("folder", "config", "prompts", "embeddings", "cache", "dtype", "device")
"""Arguments of a teacher with weights that one without does not take."""


def released_arguments(name: str, arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the arguments of a released model's teacher without weights.

    Args:
        name: The registered name of the teacher.
        arguments: Its arguments; their ``folder`` names a pipeline.

    Returns:
        The sizes and the other arguments, or ``None`` if the pipeline is not listed.
    """
    sizes = RELEASED.get(str(arguments.get("folder", "")))
    if sizes is None:
        return None
    own = {key: value for key, value in arguments.items() if key not in _WEIGHTS}
    if sizes is _WAN_5B and name == "wan_i2v":
        own["replaces_first_frame"] = True
    return {**sizes, **own}


def equal_blocks(name: str, arguments: Mapping[str, Any]) -> int:
    """Returns the number of a released model's blocks, 0 if they are not equal or not listed.

    Args:
        name: The registered name of the teacher.
        arguments: Its arguments; their ``folder`` names a pipeline.
    """
    known = released_arguments(name, arguments)
    family = getattr(teachers[name], "__self__", None)
    if known is None or family is None:
        return 0
    sizes = {**family.released, **known}
    if "num_single_layers" in sizes or sizes.get("dual_attention_layers"):
        return 0
    return int(sizes.get("num_layers", 0))
