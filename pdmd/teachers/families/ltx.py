r"""LTX-Video: text-to-video transformers of 2 B to 13 B parameters.

The network takes :math:`1000 \sigma` as its time and predicts the velocity
:math:`\varepsilon - x_0`. Its latents of shape :math:`(128, F, H / 32, W / 32)` are read as
tokens, one for each place, whose positions are stretched to seconds and pixels, so that they
depend on the frame rate. T5 reads the text, up to 128 tokens, masked. Guidance is the classical
extrapolation; the pipeline's rescaling of it is not supported. The shift of time grows with the
number of tokens; the family's own sampler stretches its times to end at 0.1, which plans need not.

References:
    HaCohen et al., LTX-Video: Realtime Video Latent Diffusion, arXiv:2501.00103.
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
from pdmd.teachers.families.layouts import LTX
from pdmd.teachers.families.pipelines import (
    build_part,
    configuration,
    decoder,
    load_text_encoder,
    load_transformer,
)
from pdmd.teachers.families.text import TextTeacher
from pdmd.teachers.families.tokens import DynamicShift, check_head, check_size, scheduled_shift
from pdmd.typing import Condition, Latents

__all__ = ["LTXTeacher"]

SHIFT = DynamicShift(
    base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, max_image_seq_len=4096
)
"""The released weights' shift."""


class LTXTeacher(TextTeacher):
    r"""LTX-Video over latents of shape :math:`(128, (F - 1) / 8 + 1, H / 32, W / 32)`.

    Every time in [0, 1] can be asked. Conditions have ``prompt`` and ``mask``. A first image as
    condition is not supported.

    Args:
        transformer: A ``LTXVideoTransformer3DModel`` of diffusers.
        height: Height of a video, a multiple of the compression.
        width: Width of a video, likewise.
        frames: Its frames, a multiple of the compression in time and one.
        frame_rate: Frames a second.
        compression: Pixels to one latent in time, height and width.
        prompts: Turns prompts into conditions; a copy that trains has none.
        decode: Turns latents into videos in [0, 1], with shape :math:`(B, 3, F, H, W)`.
        shift: The shift recommended; by default the released weights' for this size.

    Raises:
        ValueError: If the size does not fit, the frame rate is not positive, or the network reads
            patches of several latents.
    """

    layout = LTX
    entries = ("prompt", "mask")

    def __init__(
        self,
        transformer: Any,
        *,
        height: int = 512,
        width: int = 704,
        frames: int = 161,
        frame_rate: float = 25.0,
        compression: tuple[int, int, int] = (8, 32, 32),
        prompts: Prompts | None = None,
        decode: Callable[[Latents], Tensor] | None = None,
        shift: float | None = None,
    ) -> None:
        config = transformer.config
        if (config.patch_size_t, config.patch_size) != (1, 1):
            raise ValueError(
                f"this transformer reads patches of {config.patch_size_t} x {config.patch_size} x "
                f"{config.patch_size} latents; only those of one are supported"
            )
        if frames < 1 or (frames - 1) % compression[0]:
            raise ValueError(f"frames are a multiple of {compression[0]} and one, got {frames}")
        check_size(compression[1], height=height)
        check_size(compression[2], width=width)
        if not (frame_rate > 0 and math.isfinite(frame_rate)):
            raise ValueError(f"frame_rate is a positive number, got {frame_rate}")
        shape = (
            (frames - 1) // compression[0] + 1,
            height // compression[1],
            width // compression[2],
        )
        super().__init__(
            transformer,
            latent_shape=(config.in_channels, *shape),
            shift=SHIFT(math.prod(shape)) if shift is None else shift,
            prompts=prompts,
            decode=decode,
        )
        self.size: dict[str, Any] = {
            "height": height,
            "width": width,
            "frames": frames,
            "frame_rate": frame_rate,
            "compression": compression,
        }

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        height: int = 512,
        width: int = 704,
        frames: int = 161,
        frame_rate: float = 25.0,
        text_length: int = 128,
        prompts: Sequence[str] = (),
        embeddings: Prompts | None = None,
        dtype: str | torch.dtype = "bfloat16",
        device: str | torch.device = "cpu",
        meta: bool = False,
    ) -> LTXTeacher:
        """Loads the transformer of a pipeline; text encoder and VAE follow when first used.

        A VAE that takes a time decodes at time 0 without noise, as the pipeline does unless told
        otherwise.

        Args:
            folder: The pipeline's folder or hub name, such as ``"Lightricks/LTX-Video"``.
            height: Height of a video.
            width: Width of a video.
            frames: Its frames.
            frame_rate: Frames a second.
            text_length: Tokens that T5 reads, filled up or cut off.
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
            "LTXVideoTransformer3DModel", folder, "transformer", meta=meta, **places
        )
        scheduler = configuration("FlowMatchEulerDiscreteScheduler", folder, "scheduler")
        vae = configuration("AutoencoderKLLTXVideo", folder, "vae")
        time, space = _compression(vae)
        shape = ((frames - 1) // time + 1, height // space, width // space)
        return cls(
            transformer,
            height=height,
            width=width,
            frames=frames,
            frame_rate=frame_rate,
            compression=(time, space, space),
            prompts=prompts_of(embeddings, _encoded_text(folder, prompts, text_length, places)),
            decode=decoder("AutoencoderKLLTXVideo", folder, **places),
            shift=scheduled_shift(scheduler, math.prod(shape)),
        )

    @classmethod
    def from_config(
        cls,
        *,
        height: int = 512,
        width: int = 704,
        frames: int = 161,
        frame_rate: float = 25.0,
        num_layers: int = 28,
        num_attention_heads: int = 32,
        attention_head_dim: int = 64,
        text_dim: int = 4096,
        latent_channels: int = 128,
        random_prompts: int = 8,
        text_length: int = 128,
        embeddings: Prompts | None = None,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device = "cpu",
        meta: bool = False,
        seed: int = 0,
    ) -> LTXTeacher:
        """Makes a teacher with random weights; by default the 2 B one, of full size.

        For tests and measurements of cost: without ``embeddings`` its prompts have random
        embeddings too (:meth:`~pdmd.teachers.conditioning.prompts.PromptEmbeddings.random`).

        Args:
            height: Height of a video.
            width: Width of a video.
            frames: Its frames.
            frame_rate: Frames a second.
            num_layers: Blocks.
            num_attention_heads: Heads of a block.
            attention_head_dim: Dimension of a head, even.
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
        check_head(attention_head_dim, 2)
        config = {
            "in_channels": latent_channels,
            "out_channels": latent_channels,
            "num_layers": num_layers,
            "num_attention_heads": num_attention_heads,
            "attention_head_dim": attention_head_dim,
            "cross_attention_dim": num_attention_heads * attention_head_dim,
            "caption_channels": text_dim,
        }
        transformer = build_part(
            "LTXVideoTransformer3DModel", config, dtype=dtype, device=device, meta=meta, seed=seed
        )
        if embeddings is None:
            embeddings = PromptEmbeddings.random(
                random_prompts, length=text_length, dim=text_dim, masked=True, seed=seed
            )
        return cls(
            transformer,
            height=height,
            width=width,
            frames=frames,
            frame_rate=frame_rate,
            prompts=embeddings,
        )

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates the transformer on tokens, at 1000 times the time."""
        rows = self.conditioned(condition, x_t)
        dtype, shape = self.transformer.dtype, x_t.shape[2:]
        time, *space = self.size["compression"]
        value = self.transformer(
            hidden_states=x_t.flatten(2).transpose(1, 2).to(dtype),
            encoder_hidden_states=rows["prompt"].to(dtype),
            timestep=(1000 * t).float(),
            encoder_attention_mask=rows["mask"].to(x_t.device),  # plans hold masks elsewhere
            num_frames=shape[0],
            height=shape[1],
            width=shape[2],
            rope_interpolation_scale=(time / self.size["frame_rate"], *space),
            return_dict=False,
        )[0]
        return value.transpose(1, 2).unflatten(2, shape).to(x_t.dtype)

    @property
    def call_arguments(self) -> dict[str, Any]:
        return {**super().call_arguments, "frame_rate": self.size["frame_rate"]}


def _compression(vae: dict[str, Any]) -> tuple[int, int]:
    """Returns pixels to one latent, in time and in space, as the VAE's own arithmetic has them."""
    halvings = sum(vae.get("spatio_temporal_scaling", (True, True, True, False)))
    time, space = vae.get("temporal_compression_ratio"), vae.get("spatial_compression_ratio")
    return (
        time or vae.get("patch_size_t", 1) * 2**halvings,
        space or vae.get("patch_size", 4) * 2**halvings,
    )


def _encoded_text(
    folder: str | Path, prompts: Sequence[str], text_length: int, places: dict[str, Any]
) -> EncodedText:
    def embed(pipeline: Any, texts: list[str]) -> Any:
        from tensordict import TensorDict

        embeddings, mask, _, _ = pipeline.encode_prompt(
            texts, do_classifier_free_guidance=False, max_sequence_length=text_length
        )
        entries = {"prompt": embeddings, "mask": mask.bool()}
        return TensorDict(entries, batch_size=[len(texts)])

    load = partial(load_text_encoder, "LTXPipeline", folder, **places)
    how = {"text_length": text_length}
    return EncodedText(load, embed, prompts=prompts, null="", folder=folder, how=how)
