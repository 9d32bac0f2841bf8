r"""LTX-Video: text-to-video transformers of 2 B to 13 B parameters.

The network takes :math:`1000 \sigma` as its time and predicts the velocity
:math:`\varepsilon - x_0`. Its latents of shape :math:`(128, F, H / 32, W / 32)` are one token per
place, whose positions are scaled to seconds and pixels, so that they depend on the frame rate. T5
encodes the text, up to 128 tokens, masked. Guidance is the classical extrapolation; the pipeline's
rescaling of it is not supported. The shift of time grows with the number of tokens; the family's
own sampler stretches its times to end at 0.1, which plans need not.

References:
    HaCohen et al., LTX-Video: Realtime Video Latent Diffusion, arXiv:2501.00103.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from pdmd.teachers.conditioning.text_lengths import text_mask
from pdmd.teachers.families.layouts import PipelineLayout
from pdmd.teachers.families.text import TextTeacher
from pdmd.teachers.families.tokens import DynamicShift, check_frames, check_head, check_size
from pdmd.typing import Condition, Latents

__all__ = ["LTXTeacher"]

SHIFT = DynamicShift(
    base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, max_image_seq_len=4096
)
"""The released weights' shift."""


class LTXTeacher(TextTeacher):
    r"""LTX-Video over latents of shape :math:`(128, (F - 1) / 8 + 1, H / 32, W / 32)`.

    Every time in [0, 1] can be evaluated. Conditions have ``prompt`` and ``mask``. A first image
    as condition is not supported. A VAE that takes a time decodes at time 0 without noise, as the
    pipeline does by default. Random weights are of the 2 B network by default.

    Args:
        backbone: A ``LTXVideoTransformer3DModel`` of diffusers.
        height: Height of a video, a multiple of the compression.
        width: Width of a video, as the height.
        frames: Its frames, a multiple of the compression in time and one.
        frame_rate: Frames a second.
        compression: Pixels to one latent in time, height and width.
        arguments: As :class:`~pdmd.teachers.families.text.TextTeacher` takes.

    Raises:
        ValueError: If the size does not fit, the frame rate is not positive, or a token of the
            network is several latents.
    """

    layout = PipelineLayout(
        pipeline="LTXPipeline",
        network="LTXVideoTransformer3DModel",
        vae="AutoencoderKLLTXVideo",
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
    released = {
        "num_layers": 28,
        "num_attention_heads": 32,
        "attention_head_dim": 64,
        "text_dim": 4096,
        "latent_channels": 128,
    }
    options = {
        "height": 512,
        "width": 704,
        "frames": 161,
        "frame_rate": 25.0,
        "compression": (8, 32, 32),
    }
    condition_keys = ("prompt", "mask")
    text_length = random_length = 128
    masked = True

    @classmethod
    def latents(
        cls,
        config: Any,
        *,
        height: int,
        width: int,
        frames: int,
        frame_rate: float,
        compression: tuple[int, int, int],
        **_: Any,
    ) -> tuple[int, ...]:
        if (config.patch_size_t, config.patch_size) != (1, 1):
            raise ValueError(
                f"this transformer takes patches of {config.patch_size_t} x {config.patch_size} x "
                f"{config.patch_size} latents; only those of one are supported"
            )
        time, rows, columns = compression
        check_frames(time, frames)
        check_size(rows, height=height)
        check_size(columns, width=width)
        if not (frame_rate > 0 and math.isfinite(frame_rate)):
            raise ValueError(f"frame_rate must be positive and finite, got {frame_rate}")
        return config.in_channels, (frames - 1) // time + 1, height // rows, width // columns

    @classmethod
    def network_config(cls, **sizes: Any) -> dict[str, Any]:
        text_dim, channels = sizes.pop("text_dim"), sizes.pop("latent_channels")
        check_head(sizes["attention_head_dim"], 2)
        return {
            **sizes,
            "in_channels": channels,
            "out_channels": channels,
            "cross_attention_dim": sizes["num_attention_heads"] * sizes["attention_head_dim"],
            "caption_channels": text_dim,
        }

    @classmethod
    def encode_texts(cls, pipeline: Any, texts: list[str], length: int | None) -> dict[str, Any]:
        embeddings, mask, _, _ = pipeline.encode_prompt(
            texts, do_classifier_free_guidance=False, max_sequence_length=length
        )
        return {"prompt": embeddings, "mask": mask.bool()}

    def default_shift(self) -> float:
        return SHIFT(self.tokens)

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates the network on tokens, at 1000 times the time."""
        rows = self.conditioned(condition, x_t)
        dtype, shape = self.backbone.dtype, x_t.shape[2:]
        time, *space = self.options["compression"]
        mask = text_mask(rows)
        value = self.backbone(
            hidden_states=x_t.flatten(2).transpose(1, 2).to(dtype),
            encoder_hidden_states=rows["prompt"].to(dtype),
            timestep=(1000 * t).float(),
            encoder_attention_mask=None if mask is None else mask.to(x_t.device),
            num_frames=shape[0],
            height=shape[1],
            width=shape[2],
            rope_interpolation_scale=(time / self.options["frame_rate"], *space),
            return_dict=False,
        )[0]
        return value.transpose(1, 2).unflatten(2, shape).to(x_t.dtype)
