r"""HunyuanVideo 1.5: a text-to-video transformer of 8.3 B parameters.

The network takes :math:`1000 \sigma` as its time and predicts the velocity
:math:`\varepsilon - x_0` of the latents of an autoencoder that compresses by 4 in time and by 16
in space. Beside them it takes zeros, where those of image to video take a first frame and its
mask. Qwen 2.5 VL encodes the text, up to 1000 tokens, masked, and ByT5 what the text quotes, for
letters in the video: rows of zeros where it quotes nothing. Embeddings of an image are left out,
since the network would mask them. Guidance is the classical extrapolation.

The network orders valid tokens before padding by Boolean indexing, so every evaluation waits for
the device once per sample.

References:
    Tencent Hunyuan, HunyuanVideo 1.5 Technical Report, arXiv:2511.18870.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdmd.teachers.families.layouts import PipelineLayout
from pdmd.teachers.families.text import TextTeacher
from pdmd.teachers.families.text_pipelines import load_text_encoder
from pdmd.teachers.families.tokens import check_frames, check_size, rotary_axes
from pdmd.typing import Condition, Latents

__all__ = ["HunyuanVideo15Teacher"]


class HunyuanVideo15Teacher(TextTeacher):
    r"""HunyuanVideo 1.5 over latents of shape :math:`(32, (F - 1) / 4 + 1, H / 16, W / 16)`.

    Every time in [0, 1] can be evaluated. Conditions have ``prompt``, ``mask`` and ``glyph``, the
    embedding of what the text quotes, whose padding is zero. Among the sizes, ``glyph_length`` is
    the number of its tokens, for random embeddings.

    Args:
        backbone: A ``HunyuanVideo15Transformer3DModel`` of diffusers.
        height: Height of a video, a multiple of the compression (16).
        width: Width of a video, as the height.
        frames: Its frames, a multiple of the compression in time and one.
        compression: Pixels to one latent in time, height and width.
        arguments: As :class:`~pdmd.teachers.families.text.TextTeacher` takes.

    Raises:
        ValueError: If the size does not fit, or the network is of image to video or takes a
            second time (MeanFlow).
    """

    layout = PipelineLayout(
        pipeline="HunyuanVideo15Pipeline",
        network="HunyuanVideo15Transformer3DModel",
        vae="AutoencoderKLHunyuanVideo15",
        task="text-to-video",
        time_scale=1000.0,
        unguided={},
        output="frames",
        changes={"guider/guider_config.json": {"guidance_scale": 1.0}},
    )
    released = {
        "num_layers": 54,
        "num_refiner_layers": 2,
        "num_attention_heads": 16,
        "attention_head_dim": 128,
        "text_embed_dim": 3584,
        "text_embed_2_dim": 1472,
        "image_embed_dim": 1152,
        "latent_channels": 32,
        "target_size": 640,
        "glyph_length": 256,
    }
    options = {"height": 480, "width": 848, "frames": 121, "compression": (4, 16, 16)}
    condition_keys = ("prompt", "mask", "glyph")
    random_length = 256
    masked = True

    @classmethod
    def latents(
        cls,
        config: Any,
        *,
        height: int,
        width: int,
        frames: int,
        compression: tuple[int, int, int],
        **_: Any,
    ) -> tuple[int, ...]:
        if config.task_type != "t2v" or config.use_meanflow:
            raise ValueError(
                f"this transformer has task_type {config.task_type!r} and use_meanflow "
                f"{config.use_meanflow}; only text-to-video networks of one time are supported"
            )
        time, rows, columns = compression
        check_frames(time, frames)
        check_size(rows * config.patch_size, height=height)
        check_size(columns * config.patch_size, width=width)
        return config.out_channels, (frames - 1) // time + 1, height // rows, width // columns

    @classmethod
    def network_config(
        cls, *, latent_channels: int, glyph_length: int, **sizes: Any
    ) -> dict[str, Any]:
        return {
            **sizes,
            "in_channels": 2 * latent_channels + 1,
            "out_channels": latent_channels,
            "rope_axes_dim": rotary_axes(sizes["attention_head_dim"], (16, 56, 56), least=8),
            "task_type": "t2v",
        }

    @classmethod
    def load_encoder(cls, folder: str | Path, **place: Any) -> Any:
        pipeline = load_text_encoder(cls.layout.pipeline, folder, vae=True, **place)
        pipeline.register_modules(vae=None)  # which its constructor reads, and texts do not need
        return pipeline

    @classmethod
    def read_decoder(cls, folder: str | Path, **place: Any) -> Callable[[Latents], Tensor] | None:
        decode: Any = super().read_decoder(folder, **place)
        return lambda x: torch.cat([decode(row[None]) for row in x])  # the VAE takes one at a time

    @classmethod
    def encode_texts(cls, pipeline: Any, texts: list[str], length: int | None) -> dict[str, Any]:
        prompt, mask, glyph, valid = pipeline.encode_prompt(texts, batch_size=len(texts))
        return {"prompt": prompt, "mask": mask.bool(), "glyph": glyph * valid[..., None]}

    def random_shapes(self, sizes: Mapping[str, Any]) -> Mapping[str, Sequence[int]]:
        return {"glyph": (sizes["glyph_length"], sizes["text_embed_2_dim"])}

    def default_shift(self) -> float:
        return 9.0 if self.backbone.config.target_size > 640 else 5.0

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates the network beside zeros, at 1000 times the time."""
        rows = self.conditioned(condition, x_t)
        dtype = self.backbone.dtype
        beside = torch.zeros_like(torch.cat([x_t, x_t[:, :1]], 1))
        image = x_t.new_zeros(len(x_t), 0, self.backbone.config.image_embed_dim)
        value = self.backbone(
            hidden_states=torch.cat([x_t, beside], 1).to(dtype),
            timestep=(1000 * t).float(),
            encoder_hidden_states=rows["prompt"].to(dtype),
            encoder_attention_mask=rows["mask"],
            encoder_hidden_states_2=rows["glyph"].to(dtype),
            encoder_attention_mask_2=rows["glyph"].any(-1),
            image_embeds=image.to(dtype),
            return_dict=False,
        )[0]
        return value.to(x_t.dtype)
