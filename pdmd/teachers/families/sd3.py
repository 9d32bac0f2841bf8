r"""Stable Diffusion 3 and 3.5: text-to-image transformers of 2 B to 8 B parameters.

The network takes :math:`1000 \sigma` as its time and predicts the velocity
:math:`\varepsilon - x_0` of latents of shape :math:`(16, H / 8, W / 8)`. Two CLIP encoders and T5
encode the text: CLIP's tokens, concatenated and padded to T5's dimension, precede T5's, and CLIP's
concatenated pooled vectors are the second input. No token is masked. Guidance is the classical
extrapolation, and the shift of time is 3 at every size.

References:
    Esser et al., Scaling Rectified Flow Transformers, arXiv:2403.03206.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdmd.teachers.families.layouts import PipelineLayout
from pdmd.teachers.families.pipelines import build_part, configuration
from pdmd.teachers.families.text import TextTeacher
from pdmd.teachers.families.text_pipelines import load_text_encoder
from pdmd.teachers.families.tokens import check_size, reset_positions
from pdmd.typing import Condition, Latents

__all__ = ["SD3Teacher"]


class SD3Teacher(TextTeacher):
    r"""Stable Diffusion 3 or 3.5 over latents of shape :math:`(16, H / 8, W / 8)`.

    Every time in [0, 1] can be evaluated. Conditions have ``prompt`` and ``pooled``. Guidance that
    skips layers is not supported. Random weights are the 3 Medium's by default; the 3.5 has
    ``qk_norm="rms_norm"``, and the 3.5 Medium a second attention in its first 13 blocks
    (``dual_attention_layers``).

    Args:
        backbone: A ``SD3Transformer2DModel`` of diffusers.
        height: Height of an image, a multiple of the compression times the network's patch (16).
        width: Width of an image, as the height.
        compression: Pixels to one latent in height and width.
        arguments: As :class:`~pdmd.teachers.families.text.TextTeacher` takes.

    Raises:
        ValueError: If the size does not fit, or exceeds the network's table of positions.
    """

    layout = PipelineLayout(
        pipeline="StableDiffusion3Pipeline",
        network="SD3Transformer2DModel",
        vae="AutoencoderKL",
        task="text-to-image",
        time_scale=1000.0,
        proposes=False,
        prefix="transformer",
        factors=("lora_A", "lora_B"),
        bare="",
    )
    released = {
        "num_layers": 24,
        "num_attention_heads": 24,
        "attention_head_dim": 64,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 2048,
        "latent_channels": 16,
        "pos_embed_max_size": 192,
        "qk_norm": None,
        "dual_attention_layers": (),
    }
    options = {"height": 1024, "width": 1024, "compression": 8}
    condition_keys = ("prompt", "pooled")
    text_length = 256
    random_length = 333  # 77 of CLIP and 256 of T5

    @classmethod
    def latents(
        cls, config: Any, *, height: int, width: int, compression: int, **_: Any
    ) -> tuple[int, ...]:
        pixels = compression * config.patch_size
        check_size(pixels, height=height, width=width)
        if max(height, width) > pixels * config.pos_embed_max_size:
            raise ValueError(
                f"this network's table of positions ends at {pixels * config.pos_embed_max_size} "
                f"pixels, got an image of {height} x {width}"
            )
        return config.in_channels, height // compression, width // compression

    @classmethod
    def network_config(cls, *, latent_channels: int, **sizes: Any) -> dict[str, Any]:
        return {
            **sizes,
            "in_channels": latent_channels,
            "out_channels": latent_channels,
            "caption_projection_dim": sizes["num_attention_heads"] * sizes["attention_head_dim"],
            "dual_attention_layers": tuple(sizes["dual_attention_layers"]),
        }

    @classmethod
    def load_encoder(cls, folder: str | Path, **place: Any) -> Any:
        optional = ("text_encoder_3", "tokenizer_3")
        pipeline = load_text_encoder(cls.layout.pipeline, folder, optional=optional, **place)
        if pipeline.text_encoder_3 is None:  # then the pipeline reads T5's width off its network
            config = configuration(cls.layout.network, folder, cls.layout.slots[0])
            empty = build_part(cls.layout.network, config | {"num_layers": 0}, meta=True)
            pipeline.register_modules(transformer=empty)
        return pipeline

    @classmethod
    def encode_texts(cls, pipeline: Any, texts: list[str], length: int | None) -> dict[str, Any]:
        embeddings, _, pooled, _ = pipeline.encode_prompt(
            texts,
            None,
            None,
            device=pipeline.text_encoder.device,
            do_classifier_free_guidance=False,
            max_sequence_length=length,
        )
        return {"prompt": embeddings, "pooled": pooled}

    def random_shapes(self, sizes: Mapping[str, Any]) -> Mapping[str, Sequence[int]]:
        return {"pooled": (sizes["pooled_projection_dim"],)}

    def default_shift(self) -> float:
        return 3.0

    @property
    def tokens(self) -> int:
        return super().tokens // self.backbone.config.patch_size**2

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates the network at 1000 times the time."""
        rows = self.conditioned(condition, x_t)
        dtype = self.backbone.dtype
        value = self.backbone(
            hidden_states=x_t.to(dtype),
            timestep=(1000 * t).float(),
            encoder_hidden_states=rows["prompt"].to(dtype),
            pooled_projections=rows["pooled"].to(dtype),
            return_dict=False,
        )[0]
        return value.to(x_t.dtype)

    def reset_tables(self, device: str | torch.device = "cpu") -> None:
        """Recomputes the table of positions where it was not loaded."""
        if self.backbone.pos_embed.pos_embed.is_meta:
            largest = self.backbone.config.pos_embed_max_size
            reset_positions(self.backbone, device, pos_embed_max_size=largest)
