r"""DiT: class-conditional image transformers over latents of 4 channels.

The network takes the level as its time (:mod:`pdmd.teachers.families.discrete_timesteps`) and
predicts :math:`\varepsilon` and a variance, whose channels are dropped since no step here uses
one. One further label stands for no class. Latents are the VAE's times its ``scaling_factor``.

References:
    Peebles and Xie, Scalable Diffusion Models with Transformers, arXiv:2212.09748.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdmd.diffusion.predictions import Kind
from pdmd.diffusion.variance_preserving import DiscreteVP
from pdmd.teachers.families.discrete_timesteps import (
    LINEAR,
    noise_levels,
    read_levels,
    time_range_of,
    timestep_of,
)
from pdmd.teachers.families.layouts import PipelineLayout
from pdmd.teachers.families.pipeline_teacher import PipelineTeacher
from pdmd.teachers.families.pipelines import configuration
from pdmd.teachers.mixture import encode_labels
from pdmd.typing import Condition, Latents, labels_of

__all__ = ["DiTTeacher"]


class DiTTeacher(PipelineTeacher):
    r"""DiT over latents of shape :math:`(4, H / 8, W / 8)`.

    Networks of this family drop labels at random in training; the dropping is turned off, here and
    in copies, so that an untrained copy equals the teacher. Random weights are of DiT-XL/2 at 256
    pixels by default.

    Args:
        backbone: A ``DiTTransformer2DModel`` of diffusers.
        schedule: Its noise levels.
        kind: What it predicts.
        names: Class names and their labels, for prompts.
        arguments: As :class:`~pdmd.teachers.families.pipeline_teacher.PipelineTeacher` takes.

    Raises:
        ValueError: If the network's output has neither as many channels as its input nor twice as
            many.
    """

    layout = PipelineLayout(
        pipeline="DiTPipeline",
        network="DiTTransformer2DModel",
        vae="AutoencoderKL",
        scheduler="",
    )
    released = {
        "sample_size": 32,
        "num_layers": 28,
        "num_attention_heads": 16,
        "attention_head_dim": 72,
        "patch_size": 2,
        "latent_channels": 4,
        "classes": 1000,
        "learned_variance": True,
    }
    options = {}
    common = (*PipelineTeacher.common, "names")

    def __init__(
        self,
        backbone: Any,
        *,
        schedule: DiscreteVP,
        kind: Kind,
        names: Mapping[str, int] | None = None,
        **arguments: Any,
    ) -> None:
        time_range = time_range_of(schedule)
        super().__init__(
            backbone, schedule=schedule, kind=kind, time_range=time_range, **arguments
        )
        self.levels = schedule
        self.classes = int(backbone.config.num_embeds_ada_norm)
        self.names = dict(names or {})
        for block in backbone.transformer_blocks:
            block.norm1.emb.class_embedder.dropout_prob = 0.0

    @classmethod
    def latents(cls, config: Any, **_: Any) -> tuple[int, ...]:
        channels = config.in_channels
        out_channels = channels if config.out_channels is None else config.out_channels
        if out_channels not in (channels, 2 * channels):
            raise ValueError(
                f"this transformer has {channels} input and {out_channels} output channels; "
                "as many, or twice as many for a learned variance, are supported"
            )
        return channels, config.sample_size, config.sample_size

    @classmethod
    def network_config(cls, **sizes: Any) -> dict[str, Any]:
        patch, side = sizes["patch_size"], sizes["sample_size"]
        if patch < 1 or side < 1 or side % patch:
            raise ValueError(
                f"sample_size must be a multiple of patch_size, got {side} and {patch}"
            )
        width = sizes["num_attention_heads"] * sizes["attention_head_dim"]
        if width % 4:
            raise ValueError(
                "num_attention_heads times attention_head_dim must be a multiple of 4, got "
                f"{width}"
            )
        channels, variance = sizes.pop("latent_channels"), sizes.pop("learned_variance")
        return {
            "in_channels": channels,
            "out_channels": channels * (2 if variance else 1),
            "num_embeds_ada_norm": sizes.pop("classes"),
            **sizes,
        }

    @classmethod
    def config_options(cls, sizes: Mapping[str, Any]) -> dict[str, Any]:
        schedule, kind = noise_levels(LINEAR)
        return {"schedule": schedule, "kind": kind}

    @classmethod
    def read_options(cls, folder: str | Path) -> dict[str, Any]:
        labels = configuration(cls.layout.pipeline, folder).get("id2label") or {}
        schedule, kind = read_levels(folder)
        names = {
            name.strip(): int(label)
            for label, stated in labels.items()
            for name in stated.split(",")
        }
        return {"schedule": schedule, "kind": kind, "names": names}

    @property
    def prompts(self) -> Sequence[Any]:
        """Every class."""
        return range(self.classes)

    def encode(self, prompts: Sequence[Any]) -> Condition:
        """Turns classes, or their names where the pipeline states them, into a condition."""
        labels = [self.names.get(p, p) if isinstance(p, str) else p for p in prompts]
        return encode_labels(labels, self.classes)

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates the network at its own time, without the variance."""
        if condition is None:
            label = torch.full((len(x_t),), self.classes, device=x_t.device)
        else:
            label = labels_of(condition).to(x_t.device)
        value = self.backbone(
            x_t.to(self.backbone.dtype),
            timestep=timestep_of(t, self.levels),
            class_labels=label,
            return_dict=False,
        )[0]
        return value[:, : x_t.shape[1]].to(x_t.dtype)

    def reset_tables(self, device: str | torch.device = "cpu") -> None:
        """Recomputes the table of positions."""
        embed, config = self.backbone.pos_embed, self.backbone.config
        with torch.device(device):
            table = type(embed)(
                height=config.sample_size,
                width=config.sample_size,
                patch_size=config.patch_size,
                in_channels=config.in_channels,
                embed_dim=self.backbone.inner_dim,
            )
        embed.pos_embed = table.pos_embed.to(device=device)
