r"""SDXL: text-to-image UNets of 2.6 B parameters over latents of 4 channels.

As Stable Diffusion (:mod:`pdmd.teachers.families.stable_diffusion`), with the concatenated tokens
of two encoders, the second's pooled embedding, and six numbers for the size: height and width of
the training image, top and left of its crop, height and width of the target. They are (H, W, 0, 0,
H, W) here, as in the family's pipeline. No prompt is an embedding of zeros where the pipeline
states ``force_zeros_for_empty_prompt``, as the base model does, and the empty text elsewhere; an
empty text that is given as a prompt is always encoded.

References:
    Podell et al., SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis,
    arXiv:2307.01952.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdmd.teachers.conditioning.null_prompts import ZeroedNull
from pdmd.teachers.conditioning.prompts import PromptEmbeddings, Prompts
from pdmd.teachers.families.discrete_timesteps import check_channels
from pdmd.teachers.families.layouts import PipelineLayout
from pdmd.teachers.families.pipelines import configuration, dtype_of
from pdmd.teachers.families.unet import UNetTeacher
from pdmd.typing import Latents, moved

__all__ = ["SDXLTeacher"]


class SDXLTeacher(UNetTeacher):
    r"""SDXL over latents of shape :math:`(4, H / 8, W / 8)`.

    Conditions have ``prompt`` of shape :math:`(B, 77, 2048)` and ``pooled`` of shape
    :math:`(B, 1280)`. Arguments and errors are those of
    :class:`~pdmd.teachers.families.unet.UNetTeacher`. The refiner, which starts from the base
    model's samples, is not supported. A VAE that overflows in float16 (``force_upcast``) stays in
    float32 where the weights are float16.

    Among the sizes, ``channels`` are the first block's, and the others have 2 and 4 times as many;
    ``middle_layers`` and ``deep_layers`` are the transformer layers of an attention of the second
    and third block; each number of the size is embedded in ``size_dim`` dimensions.
    """

    layout = PipelineLayout(
        pipeline="StableDiffusionXLPipeline",
        network="UNet2DConditionModel",
        vae="AutoencoderKL",
        slots=("unet",),
        scheduler="",
    )
    released = {
        "channels": 320,
        "layers_per_block": 2,
        "middle_layers": 2,
        "deep_layers": 10,
        "cross_attention_dim": 2048,
        "pooled_dim": 1280,
        "size_dim": 256,
        "norm_num_groups": 32,
        "prediction_type": "epsilon",
        "rescale_betas_zero_snr": False,
    }
    added = "text_time"

    @classmethod
    def network_config(cls, *, channels: int, **sizes: Any) -> dict[str, Any]:
        check_channels(channels, sizes["norm_num_groups"])
        widths = [channels * k for k in (1, 2, 4)]
        return {
            "sample_size": 128,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "block_out_channels": widths,
            "layers_per_block": sizes["layers_per_block"],
            "transformer_layers_per_block": [1, sizes["middle_layers"], sizes["deep_layers"]],
            "attention_head_dim": [max(1, width // 64) for width in widths],  # number of heads
            "cross_attention_dim": sizes["cross_attention_dim"],
            "norm_num_groups": sizes["norm_num_groups"],
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": sizes["size_dim"],
            "projection_class_embeddings_input_dim": 6 * sizes["size_dim"] + sizes["pooled_dim"],
        }

    @classmethod
    def check_network(cls, config: Any) -> None:
        super().check_network(config)
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        if pooled < 1:
            raise ValueError(
                "this UNet does not take six numbers for the size, "
                f"got projection_class_embeddings_input_dim = "
                f"{config.projection_class_embeddings_input_dim}"
            )

    @classmethod
    def read_options(cls, folder: str | Path) -> dict[str, Any]:
        if configuration(cls.layout.pipeline, folder).get("requires_aesthetics_score"):
            raise ValueError(
                f"{folder} is a refiner, which starts from samples; give a base model"
            )
        return super().read_options(folder)

    @classmethod
    def read_decoder(cls, folder: str | Path, **place: Any) -> Callable[[Latents], Tensor] | None:
        return super().read_decoder(folder, **cls._upcast(folder, place))

    @classmethod
    def read_latent_encoder(cls, folder: str | Path, **place: Any) -> Callable[[Tensor], Latents]:
        return super().read_latent_encoder(folder, **cls._upcast(folder, place))

    @classmethod
    def _upcast(cls, folder: str | Path, place: dict[str, Any]) -> dict[str, Any]:
        """Returns the place of a VAE, in float32 where float16 would overflow."""
        vae = configuration(cls.layout.vae, folder, "vae")
        if dtype_of(place["dtype"]) == torch.float16 and vae.get("force_upcast", True):
            return {**place, "dtype": "float32"}
        return place

    @classmethod
    def read_encoder(
        cls,
        folder: str | Path,
        prompts: Sequence[str],
        length: int | None,
        options: Mapping[str, Any],
        **place: Any,
    ) -> Prompts:
        text = super().read_encoder(folder, prompts, length, options, **place)
        index = configuration(cls.layout.pipeline, folder)
        return ZeroedNull(text) if index.get("force_zeros_for_empty_prompt", True) else text

    @classmethod
    def encode_texts(cls, pipeline: Any, texts: list[str], length: int | None) -> dict[str, Any]:
        device = pipeline.text_encoder_2.device
        tokens, _, pooled, _ = pipeline.encode_prompt(
            texts, device=device, do_classifier_free_guidance=False
        )
        return {"prompt": tokens, "pooled": pooled}

    def random_text(
        self, number: int, length: int, seed: int, sizes: Mapping[str, Any]
    ) -> PromptEmbeddings:
        text = super().random_text(number, length, seed, sizes)
        generator = torch.Generator().manual_seed(seed + 1)
        shape = number + 1, sizes["pooled_dim"]
        text.condition["pooled"] = torch.randn(shape, generator=generator, device="cpu")
        return text

    def added_inputs(self, rows: Any, x_t: Latents) -> dict[str, Tensor]:
        """Returns the pooled text and the size."""
        size = tuple(self.options["compression"] * n for n in x_t.shape[-2:])
        ids = moved(torch.tensor([*size, 0, 0, *size], dtype=torch.float32), x_t.device)
        pooled = rows["pooled"].to(self.backbone.dtype)
        return {"text_embeds": pooled, "time_ids": ids.expand(len(x_t), -1)}
