r"""DiT: class-conditional image transformers over latents of 4 channels.

The network takes the level as its time and predicts :math:`\varepsilon` and a variance
(:mod:`pdmd.teachers.families.discrete_time_teacher`). One further label stands for no class.
Latents are the VAE's times its ``scaling_factor``.

References:
    Peebles and Xie, Scalable Diffusion Models with Transformers, arXiv:2212.09748.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdmd.teachers.families.discrete_time_teacher import DiscreteTimeTeacher
from pdmd.teachers.families.layouts import PipelineLayout
from pdmd.teachers.families.pipelines import configuration
from pdmd.teachers.families.tokens import reset_positions
from pdmd.teachers.mixture import encode_labels
from pdmd.typing import Condition, Latents, labels_of

__all__ = ["DiTTeacher"]


class DiTTeacher(DiscreteTimeTeacher):
    r"""DiT over latents of shape :math:`(4, H / 8, W / 8)`.

    Networks of this family drop labels at random in training; the dropping is turned off, here and
    in copies, so that an untrained copy equals the teacher. Random weights are of DiT-XL/2 at 256
    pixels by default.

    Args:
        backbone: A ``DiTTransformer2DModel`` of diffusers.
        names: Class names and their labels, for prompts.
        arguments: As
            :class:`~pdmd.teachers.families.discrete_time_teacher.DiscreteTimeTeacher` takes.

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
    one_size = "that of its table of positions"
    common = (*DiscreteTimeTeacher.common, "names")

    def __init__(
        self, backbone: Any, *, names: Mapping[str, int] | None = None, **arguments: Any
    ) -> None:
        super().__init__(backbone, **arguments)
        self.classes = int(backbone.config.num_embeds_ada_norm)
        self.names = dict(names or {})
        for block in backbone.transformer_blocks:
            block.norm1.emb.class_embedder.dropout_prob = 0.0

    @classmethod
    def latents(cls, config: Any, **_: Any) -> tuple[int, ...]:
        cls.check_channels_out(config)
        return config.in_channels, config.sample_size, config.sample_size

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
    def read_options(cls, folder: str | Path) -> dict[str, Any]:
        labels = configuration(cls.layout.pipeline, folder).get("id2label") or {}
        names = {
            name.strip(): int(label)
            for label, stated in labels.items()
            for name in stated.split(",")
        }
        return {**super().read_options(folder), "names": names}

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
        return self.evaluate(x_t, t, class_labels=label)

    def reset_tables(self, device: str | torch.device = "cpu") -> None:
        """Recomputes the table of positions."""
        reset_positions(self.backbone, device)
