r"""Z-Image: a text-to-image transformer of 6 B parameters.

The network's time runs the other way, :math:`1 - \sigma`, and so does what it predicts,
:math:`x_0 - \varepsilon`; here both are turned round. It reads a list of images and a list of
captions, each of its own length; a condition holds them filled up, with a mask, and they are cut
to their lengths before the network sees them.

The family's pipeline counts guidance from zero, :math:`f_c + w (f_c - f_\varnothing)`. Here the
scale means what it means everywhere else, :math:`g = 1 + w`: ``Guided(teacher, 5.0)`` is the
pipeline's ``guidance_scale=4.0``, and no guidance is 1 here and 0 there. The pipeline's
normalisation, where asked for, keeps the length of a guided prediction :math:`f_g` of one image
within :math:`c \, \|f_c\|`,

.. math:: f_g \, \min \left( 1, c \, \frac{\|f_c\|}{\|f_g\|} \right).

References:
    Z-Image Team, Z-Image: An Efficient Image Generation Foundation Model, arXiv:2511.22699.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdmd.teachers.conditioning.prompts import EncodedText, PromptEmbeddings, Prompts, prompts_of
from pdmd.teachers.families.layouts import Z_IMAGE
from pdmd.teachers.families.pipelines import (
    build_part,
    configuration,
    decoder,
    load_text_encoder,
    load_transformer,
)
from pdmd.teachers.families.text import TextTeacher
from pdmd.teachers.families.tokens import check_head, check_size, scheduled_shift
from pdmd.typing import Condition, Latents

__all__ = ["ZImageTeacher"]

PATCH = 2
"""Latents of one token, in height and width."""


class ZImageTeacher(TextTeacher):
    r"""Z-Image over latents of shape :math:`(16, H / 8, W / 8)`.

    Every time in [0, 1] can be asked. Conditions have ``prompt`` and ``mask``, true up to the end
    of each text. Guidance holds at every time: the pipeline's truncation is not supported.

    Args:
        transformer: A ``ZImageTransformer2DModel`` of diffusers.
        height: Height of an image, a multiple of twice the compression (16).
        width: Width of an image, likewise.
        compression: Pixels to one latent in height and width.
        cfg_normalization: :math:`c` of the guided prediction's length; 0 leaves it as it is.
        prompts: Turns prompts into conditions; a copy that trains has none.
        decode: Turns latents into images in [0, 1], with shape :math:`(B, 3, H, W)`.
        shift: The shift of time recommended; 3 of the Turbo weights by default.

    Raises:
        ValueError: If the size does not fit, or is larger than the network's tables of positions;
            if the normalisation is negative, or the network reads images.
    """

    layout = Z_IMAGE
    entries = ("prompt", "mask")

    def __init__(
        self,
        transformer: Any,
        *,
        height: int = 1024,
        width: int = 1024,
        compression: int = 8,
        cfg_normalization: float = 0.0,
        prompts: Prompts | None = None,
        decode: Callable[[Latents], Tensor] | None = None,
        shift: float = 3.0,
    ) -> None:
        config = transformer.config
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
                "this transformer reads images too (siglip_feat_dim); only text-to-image networks "
                "are supported"
            )
        if not (cfg_normalization >= 0 and math.isfinite(cfg_normalization)):
            raise ValueError(
                f"cfg_normalization is a number from 0, which is none, got {cfg_normalization}"
            )
        super().__init__(
            transformer,
            latent_shape=(config.in_channels, height // compression, width // compression),
            shift=shift,
            prompts=prompts,
            decode=decode,
        )
        self.size: dict[str, Any] = {
            "height": height,
            "width": width,
            "compression": compression,
        }
        self.cfg_normalization = cfg_normalization

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        height: int = 1024,
        width: int = 1024,
        cfg_normalization: float = 0.0,
        text_length: int = 512,
        prompts: Sequence[str] = (),
        embeddings: Prompts | None = None,
        dtype: str | torch.dtype = "bfloat16",
        device: str | torch.device = "cpu",
        meta: bool = False,
    ) -> ZImageTeacher:
        """Loads the transformer of a pipeline; text encoder and VAE follow when first used.

        Args:
            folder: The pipeline's folder or hub name, such as ``"Tongyi-MAI/Z-Image"``.
            height: Height of an image.
            width: Width of an image.
            cfg_normalization: As the class takes it.
            text_length: Most tokens of a text; longer ones are cut off.
            prompts: What a distillation draws from.
            embeddings: Turns prompts into conditions in place of the text encoder.
            dtype: Type of all weights.
            device: Where they live.
            meta: Whether to leave the transformer's weights on the meta device.

        Raises:
            ValueError: If a part is missing or another family's.
        """
        places: dict[str, Any] = {"dtype": dtype, "device": device}
        transformer = load_transformer(
            "ZImageTransformer2DModel", folder, "transformer", meta=meta, **places
        )
        scheduler = configuration("FlowMatchEulerDiscreteScheduler", folder, "scheduler")
        vae = configuration("AutoencoderKL", folder, "vae")
        compression = 2 ** (len(vae["block_out_channels"]) - 1)
        return cls(
            transformer,
            height=height,
            width=width,
            compression=compression,
            cfg_normalization=cfg_normalization,
            prompts=prompts_of(embeddings, _encoded_text(folder, prompts, text_length, places)),
            decode=decoder("AutoencoderKL", folder, **places),
            shift=scheduled_shift(scheduler, height * width // (PATCH * compression) ** 2),
        )

    @classmethod
    def from_config(
        cls,
        *,
        height: int = 1024,
        width: int = 1024,
        cfg_normalization: float = 0.0,
        num_layers: int = 30,
        num_refiner_layers: int = 2,
        num_attention_heads: int = 30,
        attention_head_dim: int = 128,
        text_dim: int = 2560,
        latent_channels: int = 16,
        random_prompts: int = 8,
        text_length: int = 64,
        embeddings: Prompts | None = None,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device = "cpu",
        meta: bool = False,
        seed: int = 0,
    ) -> ZImageTeacher:
        """Makes a teacher with random weights, of full size by default.

        For tests and measurements of cost: without ``embeddings`` its prompts have random
        embeddings too (:meth:`~pdmd.teachers.conditioning.prompts.PromptEmbeddings.random`).

        Args:
            height: Height of an image.
            width: Width of an image.
            cfg_normalization: As the class takes it.
            num_layers: Blocks.
            num_refiner_layers: Blocks that image and text each pass alone before.
            num_attention_heads: Heads of a block.
            attention_head_dim: Dimension of a head, even and at least 6.
            text_dim: Dimension of a token of text.
            latent_channels: Channels of the latents.
            random_prompts: How many prompts, besides none.
            text_length: Most tokens of their embeddings.
            embeddings: Turns prompts into conditions instead.
            dtype: Type of the weights.
            device: Where they live.
            meta: Whether to make them without memory, on the meta device.
            seed: Seed of weights and embeddings.
        """
        check_head(attention_head_dim, 6)
        side = 2 * (3 * attention_head_dim // 16)  # the released model's split: (32, 48, 48)
        config = {
            "in_channels": latent_channels,
            "dim": num_attention_heads * attention_head_dim,
            "n_layers": num_layers,
            "n_refiner_layers": num_refiner_layers,
            "n_heads": num_attention_heads,
            "n_kv_heads": num_attention_heads,
            "cap_feat_dim": text_dim,
            "axes_dims": (attention_head_dim - 2 * side, side, side),
        }
        transformer = build_part(
            "ZImageTransformer2DModel", config, dtype=dtype, device=device, meta=meta, seed=seed
        )
        if embeddings is None:
            embeddings = PromptEmbeddings.random(
                random_prompts, length=text_length, dim=text_dim, masked=True, seed=seed
            )
        return cls(
            transformer,
            height=height,
            width=width,
            cfg_normalization=cfg_normalization,
            prompts=embeddings,
        )

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Cuts texts to their lengths, evaluates at 1 less the time and turns the sign."""
        rows = self.conditioned(condition, x_t)
        dtype = self.transformer.dtype
        lengths = rows["mask"].sum(1).tolist()
        texts = rows["prompt"].to(dtype)
        values = self.transformer(
            list(x_t.to(dtype)[:, :, None]),
            (1 - t).float(),
            [text[:length] for text, length in zip(texts, lengths, strict=True)],
            return_dict=False,
        )[0]
        return -torch.stack(values)[:, :, 0].to(x_t.dtype)

    def guide(
        self, conditional: Latents, unconditional: Latents, scale: float | Tensor
    ) -> Latents:
        """Extrapolates, and keeps the length within bounds where that is asked for."""
        combined = super().guide(conditional, unconditional, scale)
        if not self.cfg_normalization:
            return combined
        dims = tuple(range(1, combined.ndim))
        longest, length = (
            torch.linalg.vector_norm(x, dim=dims, keepdim=True) for x in (conditional, combined)
        )
        return combined * (self.cfg_normalization * longest / length).clamp(max=1)

    def around(self, transformer: Any) -> ZImageTeacher:
        return type(self)(
            transformer, cfg_normalization=self.cfg_normalization, shift=self.shift, **self.size
        )


def _encoded_text(
    folder: str | Path, prompts: Sequence[str], text_length: int, places: dict[str, Any]
) -> EncodedText:
    def embed(pipeline: Any, texts: list[str]) -> Any:
        from tensordict import TensorDict

        embeddings, _ = pipeline.encode_prompt(
            list(texts),  # which it writes into
            do_classifier_free_guidance=False,
            max_sequence_length=text_length,
        )
        lengths = torch.tensor([len(text) for text in embeddings])
        filled = torch.nn.utils.rnn.pad_sequence(embeddings, batch_first=True)
        mask = torch.arange(filled.shape[1]) < lengths[:, None]
        entries = {"prompt": filled, "mask": mask.to(filled.device)}
        return TensorDict(entries, batch_size=[len(texts)])

    load = partial(load_text_encoder, "ZImagePipeline", folder, **places)
    how = {"text_length": text_length}
    return EncodedText(load, embed, prompts=prompts, null="", folder=folder, how=how)
