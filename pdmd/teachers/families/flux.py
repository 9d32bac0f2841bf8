r"""Flux.1: text-to-image transformers of 12 B parameters.

The network takes :math:`\sigma` as its time, which on rectified flow is ours, and predicts the
velocity :math:`\varepsilon - x_0`. Its inputs are latents packed into tokens of :math:`2 \times 2`
pixels and their positions, T5's tokens, without a mask, and CLIP's pooled vector. The dev weights
were distilled for guidance: they take its strength as an input, 3.5 by default, and cost one
evaluation. That is no extrapolation between two predictions, which
:class:`~pdmd.teachers.guided.Guided` adds by the classical rule (the pipeline's true guidance).
The schnell weights take no such input.

The shift of time grows with the number of tokens for dev, and is 1 for schnell.

References:
    Black Forest Labs, FLUX.1, https://github.com/black-forest-labs/flux.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdmd.teachers.families.embedded_guidance import with_guidance
from pdmd.teachers.families.layouts import PipelineLayout
from pdmd.teachers.families.pipelines import network_configuration
from pdmd.teachers.families.text import TextTeacher
from pdmd.teachers.families.tokens import (
    DynamicShift,
    image_positions,
    pack,
    packed_config,
    packed_shape,
    unpack,
)
from pdmd.typing import Condition, Latents

__all__ = ["FluxTeacher"]

SHIFT = DynamicShift(
    base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
)
"""The shift of the dev weights."""


class FluxTeacher(TextTeacher):
    r"""Flux.1 over latents of shape :math:`(16, H / 8, W / 8)`.

    Every time in [0, 1] can be evaluated. Conditions have ``prompt`` and ``pooled``. Texts are
    padded or cut to 512 tokens of T5, and to 256 for a network that takes no guidance.

    Args:
        backbone: A ``FluxTransformer2DModel`` of diffusers.
        height: Height of an image, a multiple of twice the compression (16).
        width: Width of an image, as the height.
        compression: Pixels to one latent in height and width.
        guidance_embedded: The strength of guidance that a network distilled for it takes as an
            input; 3.5 by default, and ``None`` for one that takes none.
        arguments: As :class:`~pdmd.teachers.families.text.TextTeacher` takes.

    Raises:
        ValueError: If the size is no multiple of 16, or guidance is given to a network that takes
            none, or is not finite.
    """

    layout = PipelineLayout(
        pipeline="FluxPipeline",
        network="FluxTransformer2DModel",
        vae="AutoencoderKL",
        task="text-to-image",
        unguided={"true_cfg_scale": 1.0},
        prefix="transformer",  # ComfyUI reads diffusers' names: released maps are fused
        factors=("lora_A", "lora_B"),
        bare="",
    )
    released = {
        "num_layers": 19,
        "num_single_layers": 38,
        "num_attention_heads": 24,
        "attention_head_dim": 128,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "guidance_embeds": True,
        "latent_channels": 16,
    }
    options = {"height": 1024, "width": 1024, "compression": 8, "guidance_embedded": None}
    condition_keys = ("prompt", "pooled")
    latents_per_token = 4
    text_length = random_length = 512

    @classmethod
    def complete_options(cls, config: Any, options: dict[str, Any]) -> dict[str, Any]:
        return with_guidance(config, options, 3.5)

    @classmethod
    def latents(
        cls,
        config: Any,
        *,
        height: int,
        width: int,
        compression: int,
        **_: Any,
    ) -> tuple[int, ...]:
        return packed_shape(config, height=height, width=width, compression=compression)

    @classmethod
    def network_config(cls, **sizes: Any) -> dict[str, Any]:
        return packed_config(**sizes)

    @classmethod
    def read_length(cls, folder: str | Path) -> int | None:
        config = network_configuration(cls.layout.network, folder, cls.layout.slots[0])
        return cls.text_length if config.get("guidance_embeds") else 256

    @classmethod
    def encode_texts(cls, pipeline: Any, texts: list[str], length: int | None) -> dict[str, Any]:
        embeddings, pooled, _ = pipeline.encode_prompt(texts, max_sequence_length=length)
        return {"prompt": embeddings, "pooled": pooled}

    def random_shapes(self, sizes: Mapping[str, Any]) -> Mapping[str, Sequence[int]]:
        return {"pooled": (sizes["pooled_projection_dim"],)}

    def default_shift(self) -> float:
        return SHIFT(self.tokens) if self.backbone.config.guidance_embeds else 1.0

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Packs, evaluates and unpacks; the time is the network's own."""
        rows = self.conditioned(condition, x_t)
        height, width = x_t.shape[-2:]
        dtype, text = self.backbone.dtype, rows["prompt"]
        guidance = self.options["guidance_embedded"]
        if guidance is not None:
            guidance = torch.full_like(t, guidance, dtype=torch.float32)
        value = self.backbone(
            hidden_states=pack(x_t).to(dtype),
            timestep=t.float(),
            guidance=guidance,
            encoder_hidden_states=text.to(dtype),
            pooled_projections=rows["pooled"].to(dtype),
            img_ids=image_positions(height // 2, width // 2, x_t.device),
            txt_ids=torch.zeros(text.shape[1], 3, device=x_t.device),
            return_dict=False,
        )[0]
        return unpack(value, height, width).to(x_t.dtype)

    @property
    def call_arguments(self) -> dict[str, Any]:
        guidance = self.options["guidance_embedded"]
        if guidance is None:
            return {**super().call_arguments, "max_sequence_length": 256}
        return {**super().call_arguments, "max_sequence_length": 512, "guidance_scale": guidance}
