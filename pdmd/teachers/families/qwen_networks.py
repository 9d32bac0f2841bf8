r"""Qwen-Image's networks: what text to image and editing share.

The network takes :math:`\sigma` as its time, which on rectified flow is ours, and predicts the
velocity :math:`\varepsilon - x_0`. Its inputs are latents packed into tokens of :math:`2 \times 2`
pixels, text embeddings and their mask. Guidance restores every token's length,

.. math:: f_g = \tilde f_g \, \frac{\|f(x_t, t, c)\|}{\|\tilde f_g\|}, \qquad
    \tilde f_g = f(x_t, t, \varnothing) + g \, (f(x_t, t, c) - f(x_t, t, \varnothing)),

with norms over each token's channels. The shift of time grows with the number of tokens.

References:
    Wu et al., Qwen-Image Technical Report, arXiv:2508.02324.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdmd.teachers.conditioning.text_lengths import text_mask
from pdmd.teachers.families.filled_numbers import FilledNumbers
from pdmd.teachers.families.layouts import PipelineLayout
from pdmd.teachers.families.pipeline_checks import check_index
from pdmd.teachers.families.pipelines import configuration, reporting
from pdmd.teachers.families.text import TextTeacher
from pdmd.teachers.families.tokens import (
    DynamicShift,
    pack,
    packed_config,
    packed_shape,
    unpack,
)
from pdmd.typing import Latents

__all__ = ["LAYOUT", "SIZES", "QwenNetworkTeacher"]

LAYOUT = PipelineLayout(
    pipeline="QwenImagePipeline",
    network="QwenImageTransformer2DModel",
    vae="AutoencoderKLQwenImage",
    task="text-to-image",
    unguided={"true_cfg_scale": 1.0},
)
"""The layout of text to image."""

SIZES = {
    "num_layers": 60,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "joint_attention_dim": 3584,
    "latent_channels": 16,
}
"""Sizes of the released network."""


class QwenNetworkTeacher(TextTeacher):
    r"""A network of Qwen-Image over latents of shape :math:`(16, H / 8, W / 8)`.

    A subclass implements ``encode_texts`` and ``network``, the latter by :meth:`evaluate`.

    Args:
        backbone: A ``QwenImageTransformer2DModel`` of diffusers.
        height: Height of an image, a multiple of twice the compression: of 16.
        width: Width of an image, as the height.
        compression: Pixels of an image to one of its latents, in height and width.
        arguments: As :class:`~pdmd.teachers.families.text.TextTeacher` takes.

    Raises:
        ValueError: If the size is no such multiple or the network takes guidance as an input.
    """

    options = {"height": 1024, "width": 1024, "compression": 8}
    latents_per_token = 4
    null_text = " "
    masked = True

    @classmethod
    def latents(
        cls, config: Any, *, height: int, width: int, compression: int, **_: Any
    ) -> tuple[int, ...]:
        if config.guidance_embeds:
            raise ValueError(
                "this transformer takes guidance as an input (guidance_embeds); only those "
                "guided by two evaluations are supported"
            )
        return packed_shape(config, height=height, width=width, compression=compression)

    @classmethod
    def network_config(cls, *, latent_channels: int, **sizes: Any) -> dict[str, Any]:
        channels = {"latent_channels": latent_channels, "out_channels": latent_channels}
        return packed_config(**channels, **sizes)

    @classmethod
    def read_options(cls, folder: str | Path) -> dict[str, Any]:
        with reporting(folder):
            check_index(folder, pipeline=cls.layout.pipeline)
        if (configuration(cls.layout.pipeline, folder).get("vae") or [None])[0] is None:
            return {}  # without a VAE the latents are the released one's
        return super().read_options(folder)

    @classmethod
    def read_decoder(cls, folder: str | Path, **place: Any) -> Callable[[Latents], Tensor] | None:
        decode: Any = super().read_decoder(folder, **place)
        return lambda x: decode(x[:, :, None])[:, :, 0]  # an image is a video of one frame

    @classmethod
    def read_latent_encoder(cls, folder: str | Path, **place: Any) -> Callable[[Tensor], Latents]:
        encode = super().read_latent_encoder(folder, **place)
        return lambda pixels: encode(pixels[:, :, None])[:, :, 0]

    def default_shift(self) -> float:
        return DynamicShift()(self.tokens)

    def evaluate(
        self, x_t: Latents, t: Tensor, rows: Any, references: Sequence[Latents] = ()
    ) -> Latents:
        r"""Evaluates the network on packed tokens; the time is the network's own.

        Args:
            x_t: Noisy latents, with shape :math:`(B, C, H, W)`.
            t: Times, with shape :math:`(B)`.
            rows: A condition with ``prompt`` and ``mask``.
            references: Latents of further images, whose tokens follow those of ``x_t``.

        Returns:
            The velocity of ``x_t``.
        """
        height, width = x_t.shape[-2:]
        mask = text_mask(rows)
        dtype = self.backbone.dtype
        images = [x_t, *references]
        shapes = [(1, x.shape[-2] // 2, x.shape[-1] // 2) for x in images]
        copies = mask is not None or self.backbone.config.get("zero_cond_t", False)
        with FilledNumbers(x_t.device) if copies else nullcontext():
            value = self.backbone(
                hidden_states=torch.cat([pack(x.to(dtype)) for x in images], 1),
                timestep=t.float(),
                encoder_hidden_states=rows["prompt"].to(dtype),
                encoder_hidden_states_mask=mask,
                img_shapes=[shapes] * len(x_t),
                return_dict=False,
            )[0]
        tokens = height // 2 * (width // 2)
        return unpack(value[:, :tokens], height, width).to(x_t.dtype)

    def guide(
        self, conditional: Latents, unconditional: Latents, scale: float | Tensor
    ) -> Latents:
        """Extrapolates, then restores every token's length to the conditional prediction's."""
        combined = pack(super().guide(conditional, unconditional, scale))
        length = pack(conditional).norm(dim=-1, keepdim=True)
        rescaled = combined * (length / combined.norm(dim=-1, keepdim=True))
        return unpack(rescaled, *conditional.shape[-2:])

    def reset_tables(self, device: str | torch.device = "cpu") -> None:
        """Recomputes the tables of positions."""
        rope = self.backbone.pos_embed
        with torch.device(device):
            self.backbone.pos_embed = type(rope)(rope.theta, rope.axes_dim, rope.scale_rope)
