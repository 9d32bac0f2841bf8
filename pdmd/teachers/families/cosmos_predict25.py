r"""Cosmos Predict 2.5: text-to-video transformers of 2 B and 14 B parameters.

The network takes :math:`\sigma` as its time, which on rectified flow is ours, and predicts the
velocity :math:`\varepsilon - x_0` of the latents of Wan's VAE. Beside them it takes a mask of
known frames, here zeros, and a mask of padding, zeros too. Cosmos Reason 1 (Qwen 2.5 VL) encodes
the text: all its hidden layers, normalised and concatenated, 512 tokens without a mask. The
network projects each token from 100,352 numbers to 1024 before its first block. Here the
projection is part of the encoding, so that a condition has 1 MB rather than 100; it is the
teacher's, and students keep it.

The pipeline's ``guidance_scale`` :math:`w` adds to the conditional prediction, so that
:math:`g = 1 + w`, and leads away from a text that describes poor videos, which is the null text
here.

References:
    NVIDIA, World Simulation with Video Foundation Models for Physical AI, arXiv:2511.00062.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from pdmd.extras import require
from pdmd.teachers.conditioning.fingerprints import tensor_fingerprint
from pdmd.teachers.conditioning.prompts import EncodedText, Prompts
from pdmd.teachers.families.layouts import PipelineLayout
from pdmd.teachers.families.pipelines import load_backbone_part
from pdmd.teachers.families.text import TextTeacher
from pdmd.teachers.families.text_pipelines import NoSafetyChecker, load_text_encoder
from pdmd.teachers.families.tokens import check_frames, check_head, check_size
from pdmd.typing import Condition, Latents

__all__ = ["CosmosEncoders", "CosmosPredict25Teacher", "ProjectedOnce"]

PROJECTION = "crossattn_proj"
"""The part of the network that projects texts."""


class CosmosPredict25Teacher(TextTeacher):
    r"""Cosmos Predict 2.5 over latents of shape :math:`(16, (F - 1) / 4 + 1, H / 8, W / 8)`.

    Every time in [0, 1] can be evaluated. The condition is the text alone, projected. First
    images and videos are not supported. Neither the pipeline's safety checker nor torchvision
    is needed. Random weights are of the 2 B network by default.

    Args:
        backbone: A ``CosmosTransformer3DModel`` of diffusers.
        height: Height of a video, a multiple of the compression times the network's patch (16).
        width: Width of a video, as the height.
        frames: Its frames, a multiple of the compression in time and one.
        compression: Pixels to one latent in time, height and width.
        arguments: As :class:`~pdmd.teachers.families.text.TextTeacher` takes.

    Raises:
        ValueError: If the size does not fit, or the network is of another version, takes another
            network's residuals (Transfer) or embeddings of images.
    """

    layout = PipelineLayout(
        pipeline="Cosmos2_5_PredictBasePipeline",
        network="CosmosTransformer3DModel",
        vae="AutoencoderKLWan",
        scheduler="",
        task="text-to-video",
        takes_sigmas=False,
        proposes=False,
        unguided={"guidance_scale": 0.0},
        output="frames",
    )
    released = {
        "num_layers": 28,
        "num_attention_heads": 16,
        "attention_head_dim": 128,
        "adaln_lora_dim": 256,
        "text_embed_dim": 1024,
        "crossattn_proj_in_channels": 100352,
        "latent_channels": 16,
    }
    options = {"height": 704, "width": 1280, "frames": 93, "compression": (4, 8, 8)}
    text_length = random_length = 512

    def __init__(self, backbone: Any, **arguments: Any) -> None:
        super().__init__(backbone, **arguments)
        backbone.crossattn_proj.__class__ = ProjectedOnce  # the same parameters and names
        _allow_no_torchvision()

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
        plain = config.controlnet_block_every_n is None and not config.img_context_dim_in
        if not (
            config.use_crossattn_projection
            and plain
            and config.in_channels == config.out_channels + 1
        ):
            raise ValueError(
                f"this transformer has {config.in_channels} input channels, "
                f"use_crossattn_projection {config.use_crossattn_projection}, "
                f"controlnet_block_every_n {config.controlnet_block_every_n} and "
                f"img_context_dim_in {config.img_context_dim_in}; only those "
                "of Predict 2.5, which project texts, are supported"
            )
        time, rows, columns = compression
        check_frames(time, frames)
        check_size(rows * config.patch_size[1], height=height)
        check_size(columns * config.patch_size[2], width=width)
        return config.out_channels, (frames - 1) // time + 1, height // rows, width // columns

    @classmethod
    def network_config(cls, *, latent_channels: int, **sizes: Any) -> dict[str, Any]:
        check_head(sizes["attention_head_dim"], 12)
        return {
            **sizes,
            "in_channels": latent_channels + 1,
            "out_channels": latent_channels,
            "encoder_hidden_states_channels": sizes["text_embed_dim"],
            "use_crossattn_projection": True,
            "rope_scale": (1.0, 3.0, 3.0),
            "extra_pos_embed_type": None,
        }

    @classmethod
    def load_encoder(cls, folder: str | Path, **place: Any) -> CosmosEncoders:
        network, slot = cls.layout.network, cls.layout.slots[0]
        pipeline = load_text_encoder(
            cls.layout.pipeline,
            folder,
            vae=True,
            given={"safety_checker": NoSafetyChecker()},
            **place,
        )
        pipeline.register_modules(vae=None)  # which its constructor reads, and texts do not need
        projection = load_backbone_part(network, folder, slot, PROJECTION, **place)
        return CosmosEncoders(pipeline, projection)

    @classmethod
    def read_encoder(
        cls,
        folder: str | Path,
        prompts: Sequence[Any],
        length: int | None,
        options: Mapping[str, Any],
        **place: Any,
    ) -> Prompts:
        require("diffusers", "diffusers")
        from diffusers.pipelines.cosmos import pipeline_cosmos2_5_predict as module

        projection = tensor_fingerprint(folder, cls.layout.slots[0], f"{PROJECTION}.")
        return EncodedText(
            partial(cls.load_encoder, folder, **place),
            partial(cls.embed_texts, length=length),
            prompts=prompts,
            null=module.DEFAULT_NEGATIVE_PROMPT,
            folder=folder,
            how={"text_length": length, "projection": projection},
        )

    @classmethod
    def encode_texts(cls, pipeline: Any, texts: list[str], length: int | None) -> dict[str, Any]:
        rows = [  # one by one: a token has 100,352 numbers until it is projected
            pipeline.pipeline.encode_prompt(
                text, do_classifier_free_guidance=False, max_sequence_length=length
            )[0]
            for text in texts
        ]
        return {"prompt": torch.cat([pipeline.projection(row) for row in rows])}

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates the network with no known frames and no padding; the time is its own."""
        rows = self.conditioned(condition, x_t)
        dtype = self.backbone.dtype
        value = self.backbone(
            hidden_states=x_t.to(dtype),
            timestep=t.float(),
            encoder_hidden_states=rows["prompt"].to(dtype),
            condition_mask=torch.zeros_like(x_t[:, :1], dtype=dtype),
            padding_mask=torch.zeros_like(x_t[:1, :1, 0], dtype=dtype),
            return_dict=False,
        )[0]
        return value.to(x_t.dtype)


class ProjectedOnce(nn.Sequential):
    """A projection that returns tokens of its own width as they are."""

    def forward(self, input: Tensor) -> Tensor:
        linear: Any = self[0]
        return input if input.shape[-1] == linear.out_features else super().forward(input)


@dataclass(frozen=True)
class CosmosEncoders:
    """The parts of a pipeline that encode texts.

    Attributes:
        pipeline: The pipeline, without its network and VAE.
        projection: The network's projection of texts.
    """

    pipeline: Any
    projection: Any


def _allow_no_torchvision() -> None:
    """Resizes the mask of padding by torch, where diffusers would by an absent torchvision."""
    require("diffusers", "diffusers")
    module: Any = importlib.import_module("diffusers.models.transformers.transformer_cosmos")
    if not hasattr(module, "transforms"):
        module.transforms = SimpleNamespace(
            functional=SimpleNamespace(resize=_resize),
            InterpolationMode=SimpleNamespace(NEAREST="nearest"),
        )


def _resize(mask: Tensor, size: list[int], interpolation: str) -> Tensor:
    return nn.functional.interpolate(mask, size, mode=interpolation)
