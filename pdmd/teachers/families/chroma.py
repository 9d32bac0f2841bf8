r"""Chroma: a text-to-image transformer of 8.9 B parameters, after Flux.1's schnell weights.

The network is Flux.1's without CLIP's pooled vector and without guidance as an input: one small
network computes all modulations from the time. It takes :math:`\sigma` as its time, which on
rectified flow is ours, and predicts the velocity :math:`\varepsilon - x_0`. T5's tokens are
masked after the first one of padding. Guidance is the classical extrapolation by two evaluations.

diffusers' pipeline up to 0.42 casts the mask to a floating-point type, whose zeros and ones
attention *adds* to its logits, so that padding is not masked (huggingface/diffusers#12116). The
reference implementation, on which the weights were trained, masks. Here the mask is Boolean, and
the pipeline computes the same if it is given a Boolean mask.

References:
    Lodestone Rock, Chroma, https://huggingface.co/lodestones/Chroma1-HD.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pdmd.teachers.conditioning.text_lengths import text_mask
from pdmd.teachers.families.filled_numbers import FilledNumbers
from pdmd.teachers.families.layouts import PipelineLayout
from pdmd.teachers.families.text import TextTeacher
from pdmd.teachers.families.tokens import (
    image_positions,
    pack,
    packed_config,
    packed_shape,
    unpack,
)
from pdmd.typing import Condition, Latents

__all__ = ["ChromaTeacher"]


class ChromaTeacher(TextTeacher):
    r"""Chroma over latents of shape :math:`(16, H / 8, W / 8)`.

    Every time in [0, 1] can be evaluated. Conditions have ``prompt`` and ``mask``.

    Args:
        backbone: A ``ChromaTransformer2DModel`` of diffusers.
        height: Height of an image, a multiple of twice the compression (16).
        width: Width of an image, as the height.
        compression: Pixels to one latent in height and width.
        arguments: As :class:`~pdmd.teachers.families.text.TextTeacher` takes.

    Raises:
        ValueError: If the size is no multiple of 16.
    """

    layout = PipelineLayout(
        pipeline="ChromaPipeline",
        network="ChromaTransformer2DModel",
        vae="AutoencoderKL",
        unexported="a ChromaPipeline lets prompts attend to their padding",
    )
    released = {
        "num_layers": 19,
        "num_single_layers": 38,
        "num_attention_heads": 24,
        "attention_head_dim": 128,
        "joint_attention_dim": 4096,
        "latent_channels": 16,
        "approximator_num_channels": 64,
        "approximator_hidden_dim": 5120,
        "approximator_layers": 5,
    }
    options = {"height": 1024, "width": 1024, "compression": 8}
    condition_keys = ("prompt", "mask")
    latents_per_token = 4
    text_length = random_length = 512
    masked = True

    @classmethod
    def latents(
        cls, config: Any, *, height: int, width: int, compression: int, **_: Any
    ) -> tuple[int, ...]:
        return packed_shape(config, height=height, width=width, compression=compression)

    @classmethod
    def network_config(cls, **sizes: Any) -> dict[str, Any]:
        return packed_config(**sizes)

    @classmethod
    def encode_texts(cls, pipeline: Any, texts: list[str], length: int | None) -> dict[str, Any]:
        embeddings, _, mask, *_ = pipeline.encode_prompt(
            texts, do_classifier_free_guidance=False, max_sequence_length=length
        )
        return {"prompt": embeddings, "mask": mask.bool()}

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Packs, evaluates and unpacks; the time is the network's own."""
        rows = self.conditioned(condition, x_t)
        height, width = x_t.shape[-2] // 2, x_t.shape[-1] // 2
        text, dtype, mask = rows["prompt"], self.backbone.dtype, text_mask(rows)
        if mask is not None:
            image = mask.new_ones(len(x_t), height * width)
            mask = torch.cat([mask, image], 1).to(x_t.device)
        with FilledNumbers(x_t.device):
            value = self.backbone(
                hidden_states=pack(x_t).to(dtype),
                timestep=t.float(),
                encoder_hidden_states=text.to(dtype),
                img_ids=image_positions(height, width, x_t.device),
                txt_ids=torch.zeros(text.shape[1], 3, device=x_t.device),
                attention_mask=mask,
                return_dict=False,
            )[0]
        return unpack(value, *x_t.shape[-2:]).to(x_t.dtype)

    def reset_tables(self, device: str | torch.device = "cpu") -> None:
        """Recomputes the numbers of modulations as the small network takes them."""
        embed = self.backbone.time_text_embed
        channels, number = embed.time_proj.num_channels, embed.mod_proj.shape[0]
        with torch.device(device):
            embed.mod_proj = type(embed)(channels, number).mod_proj
