r"""FLUX.2: text-to-image transformers of 32 B parameters (dev), and of 4 B and 9 B (klein).

The network takes :math:`\sigma` as its time, which on rectified flow is ours, and predicts the
velocity :math:`\varepsilon - x_0`. A token is :math:`2 \times 2` latents of the VAE, normalised by
the VAE's own batch norm; here these are the latents, of 128 channels. Positions are of four axes:
image, row, column and place in the text. The text is three hidden layers of a language model,
concatenated, of Mistral 3 for dev and of Qwen 3 for klein: 512 tokens without a mask.

The dev weights were distilled for guidance and take its strength as an input, 4 by default. The
klein weights take none: the base ones are guided by two evaluations and the empty text, and the
others are distilled already. Reference images are not supported.

The shift of time :math:`e^\mu` depends on the number of tokens :math:`n` and on that of steps,

.. math:: \mu = \mu_{10}(n) + (\mu_{200}(n) - \mu_{10}(n)) \frac{\text{steps} - 10}{190},

with both terms linear in :math:`n`, and :math:`\mu = \mu_{200}` above 4300 tokens. The shift
recommended here is that of 50 steps.

References:
    Black Forest Labs, FLUX.2, https://github.com/black-forest-labs/flux2.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pdmd.teachers.families.embedded_guidance import with_guidance
from pdmd.teachers.families.layouts import PipelineLayout
from pdmd.teachers.families.text import TextTeacher
from pdmd.teachers.families.tokens import check_size, image_positions
from pdmd.typing import Condition, Latents

__all__ = ["Flux2KleinTeacher", "Flux2NetworkTeacher", "Flux2Teacher"]

STEPS = 50
"""The steps of sampling whose shift is recommended: the pipelines' default."""


class Flux2NetworkTeacher(TextTeacher):
    r"""A network of FLUX.2 over latents of shape :math:`(128, H / 16, W / 16)`.

    Every time in [0, 1] can be evaluated. The condition is the text alone.

    Args:
        backbone: A ``Flux2Transformer2DModel`` of diffusers.
        height: Height of an image, a multiple of twice the compression (16).
        width: Width of an image, as the height.
        compression: Pixels to one latent of the VAE, in height and width.
        guidance_embedded: The strength of guidance that a network distilled for it takes as an
            input; 4 by default, and ``None`` for one that takes none.
        arguments: As :class:`~pdmd.teachers.families.text.TextTeacher` takes.

    Raises:
        ValueError: If the size is no multiple of 16, or guidance is given to a network that takes
            none, or is not finite.
    """

    options = {"height": 1024, "width": 1024, "compression": 8, "guidance_embedded": None}
    text_length = random_length = 512

    @classmethod
    def complete_options(cls, config: Any, options: dict[str, Any]) -> dict[str, Any]:
        return with_guidance(config, options, 4.0)

    @classmethod
    def latents(
        cls, config: Any, *, height: int, width: int, compression: int, **_: Any
    ) -> tuple[int, ...]:
        pixels = 2 * compression
        check_size(pixels, height=height, width=width)
        return config.in_channels, height // pixels, width // pixels

    @classmethod
    def network_config(
        cls, *, attention_head_dim: int, latent_channels: int, **sizes: Any
    ) -> dict[str, Any]:
        if attention_head_dim < 8 or attention_head_dim % 8:
            raise ValueError(
                f"attention_head_dim must be a multiple of 8, got {attention_head_dim}"
            )
        return {
            **sizes,
            "in_channels": 4 * latent_channels,
            "attention_head_dim": attention_head_dim,
            "axes_dims_rope": (attention_head_dim // 4,) * 4,
        }

    @classmethod
    def encode_texts(cls, pipeline: Any, texts: list[str], length: int | None) -> dict[str, Any]:
        embeddings, _ = pipeline.encode_prompt(texts, max_sequence_length=length)
        return {"prompt": embeddings}

    def default_shift(self) -> float:
        few = 8.73809524e-05 * self.tokens + 1.89833333
        many = 0.00016927 * self.tokens + 0.45666666
        if self.tokens > 4300:
            return math.exp(many)
        return math.exp(few + (many - few) * (STEPS - 10) / 190)

    @property
    def call_arguments(self) -> dict[str, Any]:
        guidance = self.options["guidance_embedded"]
        return super().call_arguments | ({} if guidance is None else {"guidance_scale": guidance})

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates the network on tokens; the time is its own."""
        rows = self.conditioned(condition, x_t)
        dtype, text = self.backbone.dtype, rows["prompt"]
        height, width = x_t.shape[2:]
        guidance = self.options["guidance_embedded"]
        if guidance is not None:
            guidance = torch.full_like(t, guidance, dtype=torch.float32)
        places = torch.arange(text.shape[1], device=x_t.device, dtype=torch.float32)
        value = self.backbone(
            hidden_states=x_t.flatten(2).transpose(1, 2).to(dtype),
            timestep=t.float(),
            guidance=guidance,
            encoder_hidden_states=text.to(dtype),
            img_ids=_of_four_axes(image_positions(height, width, x_t.device)),
            txt_ids=_of_four_axes(places[:, None], first=3),
            return_dict=False,
        )[0]
        return value.transpose(1, 2).unflatten(2, (height, width)).to(x_t.dtype)


class Flux2Teacher(Flux2NetworkTeacher):
    """FLUX.2 dev. Arguments and errors are those of :class:`Flux2NetworkTeacher`."""

    layout = PipelineLayout(
        pipeline="Flux2Pipeline",
        network="Flux2Transformer2DModel",
        vae="AutoencoderKLFlux2",
        scheduler="",
        task="text-to-image",
        unguided={},  # guidance is an input of the network
    )
    released = {
        "num_layers": 8,
        "num_single_layers": 48,
        "num_attention_heads": 48,
        "attention_head_dim": 128,
        "joint_attention_dim": 15360,
        "guidance_embeds": True,
        "latent_channels": 32,
    }


class Flux2KleinTeacher(Flux2NetworkTeacher):
    """FLUX.2 klein, of 4 B by default; for 9 B see :mod:`~pdmd.teachers.families.released`.

    Arguments and errors are those of :class:`Flux2NetworkTeacher`.
    """

    layout = PipelineLayout(
        pipeline="Flux2KleinPipeline",
        network="Flux2Transformer2DModel",
        vae="AutoencoderKLFlux2",
        scheduler="",
        task="text-to-image",
    )
    released = {
        "num_layers": 5,
        "num_single_layers": 20,
        "num_attention_heads": 24,
        "attention_head_dim": 128,
        "joint_attention_dim": 7680,
        "guidance_embeds": False,
        "latent_channels": 32,
    }


def _of_four_axes(positions: Tensor, first: int = 0) -> Tensor:
    """Returns positions of four axes, with zeros before the first given one and after the last."""
    last = 4 - first - positions.shape[1]
    return torch.nn.functional.pad(positions, (first, last))
