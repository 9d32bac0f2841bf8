"""Layouts: how a family's pipeline in diffusers is put together, and how it asks its network.

A few facts that a family states once, so that students of it can be written as pipelines and
adapters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["FLUX", "LTX", "QWEN_IMAGE", "SD3", "WAN", "Z_IMAGE", "PipelineLayout"]


@dataclass(frozen=True, kw_only=True)
class PipelineLayout:
    """A family's pipeline.

    Its network takes the time ``time_scale * t + time_offset`` as ``time_argument``.

    Attributes:
        pipeline: The pipeline's class.
        network: Its network's class.
        task: What the model hub calls what it does.
        slots: Where the pipeline holds its network. A second one holds the network for times
            below the pipeline's ``boundary_ratio``.
        time_scale: The network's time per ours.
        time_offset: The network's time at our 0.
        time_argument: The name of the time among the network's arguments.
        takes_sigmas: Whether a call of the pipeline takes the times to walk, as ``sigmas``.
        proposes: Whether the pipeline hands its scheduler equal steps where a call does not.
        unguided: The arguments of a call that turn guidance off.
        output: The name of a call's result.
        released: Patterns of the paths of linear maps in diffusers' network, and the paths in the
            network as it was first released, which adapter files of ComfyUI go by; empty where
            the two agree.
        prefix: What such files put before a path.
        factors: What they call a map's two factors, the one applied first first.
        bare: A pattern of the released paths for which they hold no ``alpha``, so that the second
            factor must hold the scale.
        folder: Where the family's pipeline is if it ships with the package.
    """

    pipeline: str
    network: str
    task: str
    slots: tuple[str, ...] = ("transformer",)
    time_scale: float = 1.0
    time_offset: float = 0.0
    time_argument: str = "timestep"
    takes_sigmas: bool = True
    proposes: bool = True
    unguided: Mapping[str, float] = field(default_factory=lambda: {"guidance_scale": 1.0})
    output: str = "images"
    released: Mapping[str, str] = field(default_factory=dict)
    prefix: str = "diffusion_model"
    factors: tuple[str, str] = ("lora_down", "lora_up")
    bare: str = r"(?!)"
    folder: str = ""

    def released_name(self, path: str) -> str:
        """Returns the released path of a linear map in diffusers' network.

        Raises:
            ValueError: If it has none.
        """
        if not self.released:
            return path
        for pattern, name in self.released.items():
            path, found = re.subn(pattern, name, path)
            if found:
                return path
        raise ValueError(f"{path} of a {self.network} has no name in the released network")


QWEN_IMAGE = PipelineLayout(
    pipeline="QwenImagePipeline",
    network="QwenImageTransformer2DModel",
    task="text-to-image",
    unguided={"true_cfg_scale": 1.0},
)
"""Qwen-Image."""

WAN = PipelineLayout(
    pipeline="WanPipeline",
    network="WanTransformer3DModel",
    task="text-to-video",
    slots=("transformer", "transformer_2"),
    time_scale=1000.0,
    takes_sigmas=False,
    proposes=False,
    output="frames",
    released={
        r"\battn1\.to_out\.0$": "self_attn.o",
        r"\battn1\.to_([qkv])$": r"self_attn.\1",
        r"\battn2\.to_out\.0$": "cross_attn.o",
        r"\battn2\.to_([qkv])$": r"cross_attn.\1",
        r"\bffn\.net\.0\.proj$": "ffn.0",
        r"\bffn\.net\.2$": "ffn.2",
        r"^condition_embedder\.time_proj$": "time_projection.1",
        r"^condition_embedder\.(text|time)_embedder\.linear_1$": r"\1_embedding.0",
        r"^condition_embedder\.(text|time)_embedder\.linear_2$": r"\1_embedding.2",
        r"^proj_out$": "head.head",
    },
    bare=r"^(time_projection|text_embedding|time_embedding|head)\.",
)
"""Wan, text to video."""

FLUX = PipelineLayout(
    pipeline="FluxPipeline",
    network="FluxTransformer2DModel",
    task="text-to-image",
    unguided={"true_cfg_scale": 1.0},
    prefix="transformer",
    factors=("lora_A", "lora_B"),
    bare="",
)
"""Flux.1; ComfyUI reads diffusers' names, for released ones hold several maps in one."""

SD3 = PipelineLayout(
    pipeline="StableDiffusion3Pipeline",
    network="SD3Transformer2DModel",
    task="text-to-image",
    time_scale=1000.0,
    proposes=False,
    prefix="transformer",
    factors=("lora_A", "lora_B"),
    bare="",
)
"""Stable Diffusion 3 and 3.5, likewise."""

Z_IMAGE = PipelineLayout(
    pipeline="ZImagePipeline",
    network="ZImageTransformer2DModel",
    task="text-to-image",
    time_scale=-1.0,
    time_offset=1.0,
    time_argument="t",
    unguided={"guidance_scale": 0.0},
    prefix="transformer",
    factors=("lora_A", "lora_B"),
    bare="",
)
"""Z-Image, likewise; its time runs the other way."""

LTX = PipelineLayout(
    pipeline="LTXPipeline",
    network="LTXVideoTransformer3DModel",
    task="text-to-video",
    time_scale=1000.0,
    takes_sigmas=False,
    output="frames",
    released={
        r"^(transformer_blocks\..*|caption_projection\..*|proj_out)$": r"\1",
        r"^proj_in$": "patchify_proj",
        r"^time_embed\.": "adaln_single.",
    },
    factors=("lora_A", "lora_B"),
    bare="",
)
"""LTX-Video."""
