r"""SiT: class-conditional image transformers of DiT's architecture on rectified flow.

The network's time runs the other way, :math:`1 - t`, with data at 1, and so does its velocity
:math:`x_0 - \varepsilon`; both are reversed here. It is called as ``network(x, time, labels)``, as
in the published code, and one further label stands for no class. The published sampler guides
three of the four channels alone, by default; here ``guided_channels`` states how many, all by
default.

References:
    Ma et al., SiT: Exploring Flow and Diffusion-based Generative Models with Scalable Interpolant
    Transformers, arXiv:2401.08740, https://github.com/willisma/SiT.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.schedules import RectifiedFlow
from pdmd.teachers.families.module_networks import LabelTeacher, build_network
from pdmd.teachers.families.vaes import load_decoder
from pdmd.typing import Condition, Latents

__all__ = ["SiTTeacher"]


class SiTTeacher(LabelTeacher):
    r"""SiT over latents of shape :math:`(4, H / 8, W / 8)`.

    Every time in [0, 1] can be evaluated. Networks that return more than the velocity, such as
    those trained with REPA, return it first.

    Args:
        backbone: The network, with ``in_channels``, ``x_embedder`` and ``y_embedder`` as
            published.
        guided_channels: The channels that guidance extrapolates; all by default.
        decode: Turns latents into images in [0, 1].

    Raises:
        ValueError: If the guided channels are not between 1 and the network's.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        guided_channels: int | None = None,
        decode: Callable[[Latents], Tensor] | None = None,
    ) -> None:
        network: Any = backbone
        channels = int(network.in_channels)
        guided = channels if guided_channels is None else guided_channels
        if not 1 <= guided <= channels:
            raise ValueError(f"guided_channels must be from 1 to {channels}, got {guided}")
        side = round(network.x_embedder.num_patches**0.5) * int(network.patch_size)
        super().__init__(
            backbone,
            classes=int(network.y_embedder.num_classes),
            schedule=RectifiedFlow(),
            kind="velocity",
            latent_shape=(channels, side, side),
        )
        self.guided_channels = guided
        if decode is not None:
            self.decode = decode

    @classmethod
    def from_arguments(
        cls,
        *,
        module: str = "models:SiT_XL_2",
        network: Mapping[str, Any] | None = None,
        weights: str = "",
        vae: str = "",
        guided_channels: int | None = None,
        dtype: str = "float32",
        device: str = "cpu",
        meta: bool = False,
        seed: int = 0,
    ) -> SiTTeacher:
        """Builds a teacher from plain values, as configurations state them.

        Args:
            module: What builds the network (:mod:`~pdmd.teachers.families.module_networks`).
            network: Its arguments, such as ``input_size``, a pixel's eighth.
            weights: A safetensors file; random weights without one.
            vae: A pipeline's folder or hub name, such as DiT's, whose VAE decodes; none without.
            guided_channels: The channels that guidance extrapolates.
            dtype: Type of all weights.
            device: Where they live.
            meta: Whether to leave the network's weights on the meta device.
            seed: Seed of random weights.
        """
        place: dict[str, Any] = {"dtype": dtype, "device": device}
        built = build_network(
            module, network or {}, weights=weights, meta=meta, seed=seed, **place
        )
        decode = load_decoder("AutoencoderKL", vae, **place) if vae else None
        return cls(built, guided_channels=guided_channels, decode=decode)

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates the network at one less the time and reverses the sign."""
        dtype = next(self.backbone.parameters()).dtype
        time, labels = (1 - t).float(), self.labels(condition, x_t)
        value = self.backbone(x_t.to(dtype), time, labels)
        value = value[0] if isinstance(value, tuple) else value
        return -value[:, : x_t.shape[1]].to(x_t.dtype)

    def guide(
        self, conditional: Latents, unconditional: Latents, scale: float | Tensor
    ) -> Latents:
        """Extrapolates the guided channels."""
        combined = super().guide(conditional, unconditional, scale)
        kept = conditional[:, self.guided_channels :]
        return torch.cat([combined[:, : self.guided_channels], kept], 1)

    def trainable_copy(self) -> Denoiser:
        """Returns a copy of the network that trains, without decoder."""
        copied = SiTTeacher(copy.deepcopy(self.backbone), guided_channels=self.guided_channels)
        return copied.requires_grad_(True).train()
