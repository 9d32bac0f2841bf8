r"""Z-Image: a text-to-image transformer of 6 B parameters.

The network's time runs the other way, :math:`1 - \sigma`, and so does its prediction,
:math:`x_0 - \varepsilon`; both are reversed here. Its inputs are a list of images and a list of
captions, each of its own length; a condition is padded, with a mask, and cut to its texts' lengths
before the network is evaluated.

The family's pipeline counts guidance from zero, :math:`f_c + w (f_c - f_\varnothing)`. Here the
scale has the usual meaning, :math:`g = 1 + w`: ``Guided(teacher, 5.0)`` is the pipeline's
``guidance_scale=4.0``, and no guidance is 1 here and 0 there. The pipeline's optional
normalisation bounds the norm of one image's guided prediction :math:`f_g` by :math:`c \, \|f_c\|`,

.. math:: f_g \, \min \left( 1, c \, \frac{\|f_c\|}{\|f_g\|} \right).

References:
    Z-Image Team, Z-Image: An Efficient Image Generation Foundation Model, arXiv:2511.22699.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pdmd.teachers.conditioning.text_lengths import lengths_of
from pdmd.teachers.families.layouts import PipelineLayout
from pdmd.teachers.families.text import TextTeacher
from pdmd.teachers.families.tokens import check_size, rotary_axes
from pdmd.typing import Condition, Latents

__all__ = ["ZImageTeacher"]

PATCH = 2
"""Latents of one token, in height and width."""


class ZImageTeacher(TextTeacher):
    r"""Z-Image over latents of shape :math:`(16, H / 8, W / 8)`.

    Every time in [0, 1] can be evaluated. Conditions have ``prompt`` and ``mask``, true up to the
    end of each text. Guidance holds at every time: the pipeline's truncation is not supported.

    Args:
        backbone: A ``ZImageTransformer2DModel`` of diffusers.
        height: Height of an image, a multiple of twice the compression (16).
        width: Width of an image, as the height.
        compression: Pixels to one latent in height and width.
        cfg_normalization: :math:`c`, the bound of the guided prediction's norm; 0 is no bound.
        arguments: As :class:`~pdmd.teachers.families.text.TextTeacher` takes.

    Raises:
        ValueError: If the size does not fit, or exceeds the network's tables of positions; if the
            normalisation is negative, or the network takes images.
    """

    layout = PipelineLayout(
        pipeline="ZImagePipeline",
        network="ZImageTransformer2DModel",
        vae="AutoencoderKL",
        task="text-to-image",
        time_scale=-1.0,
        time_offset=1.0,
        time_argument="t",
        unguided={"guidance_scale": 0.0},
        prefix="transformer",
        factors=("lora_A", "lora_B"),
        bare="",
    )
    released = {
        "num_layers": 30,
        "num_refiner_layers": 2,
        "num_attention_heads": 30,
        "attention_head_dim": 128,
        "text_dim": 2560,
        "latent_channels": 16,
    }
    options = {"height": 1024, "width": 1024, "compression": 8, "cfg_normalization": 0.0}
    condition_keys = ("prompt", "mask")
    latents_per_token = PATCH**2
    text_length = 512
    masked = True

    @classmethod
    def latents(
        cls,
        config: Any,
        *,
        height: int,
        width: int,
        compression: int,
        cfg_normalization: float,
        **_: Any,
    ) -> tuple[int, ...]:
        pixels = PATCH * compression
        check_size(pixels, height=height, width=width)
        rows, columns = config.axes_lens[1:]
        if height > rows * pixels or width > columns * pixels:
            raise ValueError(
                f"this network's tables of positions end at {rows * pixels} x {columns * pixels} "
                f"pixels, got an image of {height} x {width}"
            )
        if config.siglip_feat_dim is not None:
            raise ValueError(
                "this transformer also takes images (siglip_feat_dim); only text-to-image "
                "networks are supported"
            )
        if not (cfg_normalization >= 0 and math.isfinite(cfg_normalization)):
            raise ValueError(
                f"cfg_normalization must be finite and at least 0, got {cfg_normalization}"
            )
        return config.in_channels, height // compression, width // compression

    @classmethod
    def network_config(
        cls, *, num_attention_heads: int, attention_head_dim: int, **sizes: Any
    ) -> dict[str, Any]:
        return {
            "in_channels": sizes["latent_channels"],
            "dim": num_attention_heads * attention_head_dim,
            "n_layers": sizes["num_layers"],
            "n_refiner_layers": sizes["num_refiner_layers"],
            "n_heads": num_attention_heads,
            "n_kv_heads": num_attention_heads,
            "cap_feat_dim": sizes["text_dim"],
            "axes_dims": rotary_axes(attention_head_dim, (32, 48, 48), least=6),
        }

    @classmethod
    def encode_texts(cls, pipeline: Any, texts: list[str], length: int | None) -> dict[str, Any]:
        embeddings, _ = pipeline.encode_prompt(
            list(texts),  # a copy, since the pipeline writes into it
            do_classifier_free_guidance=False,
            max_sequence_length=length,
        )
        lengths = torch.tensor([len(text) for text in embeddings])
        padded = torch.nn.utils.rnn.pad_sequence(embeddings, batch_first=True)
        mask = torch.arange(padded.shape[1]) < lengths[:, None]
        return {"prompt": padded, "mask": mask.to(padded.device)}

    def default_shift(self) -> float:
        return 3.0  # of the Turbo weights

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Cuts texts to their lengths, evaluates at one less the time and reverses the sign."""
        rows = self.conditioned(condition, x_t)
        dtype = self.backbone.dtype
        lengths = lengths_of(rows)
        if lengths is None:  # of a condition that encode() did not return: waits for the device
            lengths = rows["mask"].sum(1).tolist()
        texts = rows["prompt"].to(dtype)
        values = self.backbone(
            list(x_t.to(dtype)[:, :, None]),
            (1 - t).float(),
            [text[:length] for text, length in zip(texts, lengths, strict=True)],
            return_dict=False,
        )[0]
        return -torch.stack(values)[:, :, 0].to(x_t.dtype)

    def guide(
        self, conditional: Latents, unconditional: Latents, scale: float | Tensor
    ) -> Latents:
        """Extrapolates, and bounds the norm where ``cfg_normalization`` is not 0."""
        combined, bound = super().guide(conditional, unconditional, scale), self.options
        if not bound["cfg_normalization"]:
            return combined
        dims = tuple(range(1, combined.ndim))
        longest, length = (
            torch.linalg.vector_norm(x, dim=dims, keepdim=True) for x in (conditional, combined)
        )
        return combined * (bound["cfg_normalization"] * longest / length).clamp(max=1)
