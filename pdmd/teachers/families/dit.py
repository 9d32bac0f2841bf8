r"""DiT: class-conditional image transformers over latents of 4 channels.

The network takes the level as its time (:mod:`pdmd.teachers.families.discrete_timesteps`) and
predicts :math:`\varepsilon` and a variance, whose channels are dropped since no step here uses
one. A label of its own stands for no class. Latents are the VAE's times its ``scaling_factor``.

References:
    Peebles and Xie, Scalable Diffusion Models with Transformers, arXiv:2212.09748.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.predictions import Kind
from pdmd.diffusion.variance_preserving import DiscreteVP
from pdmd.teachers.base import Teacher
from pdmd.teachers.families.discrete_timesteps import (
    noise_levels,
    read_levels,
    time_range_of,
    timestep_of,
)
from pdmd.teachers.families.pipelines import build_part, configuration, decoder, load_transformer
from pdmd.teachers.mixture import encode_labels
from pdmd.typing import Condition, Latents, labels_of

__all__ = ["DiTTeacher"]


class DiTTeacher(Teacher):
    r"""DiT over latents of shape :math:`(4, H / 8, W / 8)`.

    Networks of this family drop labels at random while they train; the dropping is turned off,
    here and in copies, so that a copy is the teacher until it is trained.

    Args:
        transformer: A ``DiTTransformer2DModel`` of diffusers.
        schedule: Its noise levels.
        kind: What it predicts.
        names: Class names and their labels, that prompts may use.
        decode: Turns latents into images in [0, 1], with shape :math:`(B, 3, H, W)`.

    Raises:
        ValueError: If the network makes neither as many channels as it takes nor twice as many.
    """

    def __init__(
        self,
        transformer: Any,
        *,
        schedule: DiscreteVP,
        kind: Kind,
        names: Mapping[str, int] | None = None,
        decode: Callable[[Latents], Tensor] | None = None,
    ) -> None:
        config = transformer.config
        made = transformer.out_channels
        if made not in (config.in_channels, 2 * config.in_channels):
            raise ValueError(
                f"this transformer takes {config.in_channels} channels and makes {made}; as many, "
                "or twice as many for a learned variance, are supported"
            )
        super().__init__(
            schedule=schedule,
            kind=kind,
            latent_shape=(config.in_channels, config.sample_size, config.sample_size),
            time_range=time_range_of(schedule),
        )
        self.transformer, self.levels = transformer, schedule
        self.classes = int(config.num_embeds_ada_norm)
        self.names = dict(names or {})
        for block in transformer.transformer_blocks:
            block.norm1.emb.class_embedder.dropout_prob = 0.0
        if decode is not None:
            self.decode = decode

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        dtype: str | torch.dtype = "bfloat16",
        device: str | torch.device = "cpu",
        meta: bool = False,
    ) -> DiTTeacher:
        """Loads the transformer of a pipeline; the VAE follows when first used.

        Args:
            folder: The pipeline's folder or hub name, such as ``"facebook/DiT-XL-2-256"``.
            dtype: Type of all weights.
            device: Where they live.
            meta: Whether to leave the transformer's weights on the meta device.

        Raises:
            ValueError: If a part is missing.
        """
        places: dict[str, Any] = {"dtype": dtype, "device": device}
        index = configuration("DiTPipeline", folder)
        schedule, kind = read_levels(folder)
        transformer = load_transformer(
            "DiTTransformer2DModel", folder, "transformer", meta=meta, **places
        )
        teacher = cls(
            transformer,
            schedule=schedule,
            kind=kind,
            names={
                name.strip(): int(label)
                for label, names in (index.get("id2label") or {}).items()
                for name in names.split(",")
            },
            decode=decoder("AutoencoderKL", folder, **places),
        )
        teacher.reset_tables(device)
        return teacher

    @classmethod
    def from_config(
        cls,
        *,
        sample_size: int = 32,
        num_layers: int = 28,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        patch_size: int = 2,
        latent_channels: int = 4,
        classes: int = 1000,
        learned_variance: bool = True,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device = "cpu",
        meta: bool = False,
        seed: int = 0,
    ) -> DiTTeacher:
        """Makes a teacher with random weights; by default DiT-XL/2 at 256 pixels, of full size.

        Args:
            sample_size: Height and width of the latents, a multiple of the patch.
            num_layers: Blocks.
            num_attention_heads: Heads of a block.
            attention_head_dim: Dimension of a head.
            patch_size: Latents to one token, in height and width.
            latent_channels: Channels of the latents.
            classes: Number of classes.
            learned_variance: Whether the network makes a variance too.
            dtype: Type of the weights.
            device: Where they live.
            meta: Whether to make them without memory, on the meta device.
            seed: Seed of the weights.

        Raises:
            ValueError: If an argument is off.
        """
        if patch_size < 1 or sample_size < 1 or sample_size % patch_size:
            raise ValueError(
                f"sample_size is a multiple of patch_size, got {sample_size} and {patch_size}"
            )
        if num_attention_heads * attention_head_dim % 4:
            raise ValueError(
                "num_attention_heads times attention_head_dim is a multiple of 4, got "
                f"{num_attention_heads * attention_head_dim}"
            )
        config = {
            "sample_size": sample_size,
            "num_layers": num_layers,
            "num_attention_heads": num_attention_heads,
            "attention_head_dim": attention_head_dim,
            "patch_size": patch_size,
            "in_channels": latent_channels,
            "out_channels": latent_channels * (2 if learned_variance else 1),
            "num_embeds_ada_norm": classes,
        }
        transformer = build_part(
            "DiTTransformer2DModel", config, dtype=dtype, device=device, meta=meta, seed=seed
        )
        schedule, kind = noise_levels(
            {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
        )
        teacher = cls(transformer, schedule=schedule, kind=kind)
        if meta:
            teacher.reset_tables(device)
        return teacher

    @classmethod
    def from_arguments(
        cls, *, folder: str = "", meta: bool = False, **arguments: Any
    ) -> DiTTeacher:
        """Makes a teacher from plain values, as configurations hold them.

        Args:
            folder: A pipeline's folder or hub name, for :meth:`from_pretrained`; without one
                :meth:`from_config` makes random weights.
            meta: Whether to leave the weights on the meta device.
            arguments: Passed on.
        """
        if folder:
            return cls.from_pretrained(folder, meta=meta, **arguments)
        return cls.from_config(meta=meta, **arguments)

    @property
    def prompts(self) -> Sequence[Any]:
        """Every class."""
        return range(self.classes)

    def encode(self, prompts: Sequence[Any]) -> Condition:
        """Turns classes, or their names where the pipeline has some, into a condition."""
        labels = [self.names.get(p, p) if isinstance(p, str) else p for p in prompts]
        return encode_labels(labels, self.classes)

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates the transformer at its own time, without the variance."""
        if condition is None:
            label = torch.full((len(x_t),), self.classes, device=x_t.device)
        else:
            label = labels_of(condition).to(x_t.device)
        value = self.transformer(
            x_t.to(self.transformer.dtype),
            timestep=timestep_of(t, self.levels),
            class_labels=label,
            return_dict=False,
        )[0]
        return value[:, : x_t.shape[1]].to(x_t.dtype)

    def trainable_copy(self) -> Denoiser:
        """Returns a copy of the transformer that trains, without names and decoder."""
        transformer = copy.deepcopy(self.transformer)
        copied = type(self)(transformer, schedule=self.levels, kind=self.kind)
        return copied.requires_grad_(True).train()

    def reset_tables(self, device: str | torch.device = "cpu") -> None:
        """Computes the table of positions again, for a transformer from the meta device."""
        embed, config = self.transformer.pos_embed, self.transformer.config
        with torch.device(device):
            fresh = type(embed)(
                height=config.sample_size,
                width=config.sample_size,
                patch_size=config.patch_size,
                in_channels=config.in_channels,
                embed_dim=self.transformer.inner_dim,
            )
        embed.pos_embed = fresh.pos_embed.to(device=device)
