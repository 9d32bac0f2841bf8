r"""EDM and EDM2: denoisers of images in pixels or latents, on a variance-exploding process.

The network with its preconditioning is called as ``network(x, sigma, class_labels)``, as in the
published code, and returns the clean sample :math:`D(x; \sigma)` from
:math:`x = x_0 + \sigma \varepsilon`. With :math:`\rho = 7`, equal steps of time here are the
published steps of noise,

.. math:: \sigma_t = \big( \sigma_{\min}^{1/\rho} (1 - t) + \sigma_{\max}^{1/\rho} t \big)^\rho,
    \qquad \sigma_{\min} = 0.002, \; \sigma_{\max} = 80.

Labels are one-hot vectors, and zeros stand for no class. Guidance by another, smaller network
(autoguidance) is not supported; guidance by the null class is for networks that know it.

References:
    Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models,
    arXiv:2206.00364, https://github.com/NVlabs/edm.
    Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models,
    arXiv:2312.02696, https://github.com/NVlabs/edm2.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.schedules import VarianceExploding
from pdmd.teachers.families.module_networks import LabelTeacher, build_network
from pdmd.teachers.families.vaes import load_vae
from pdmd.typing import Condition, Latents

__all__ = ["EDMTeacher"]

RAW_MEAN = (5.81, 3.25, 0.12, -2.15)
RAW_STD = (4.17, 4.62, 3.71, 3.28)
"""Moments of the VAE's latents; EDM2's are normalised by them to a deviation of 0.5."""


class EDMTeacher(LabelTeacher):
    r"""EDM or EDM2 over pixels in [-1, 1] or latents, with shape :math:`(C, H, W)`.

    Args:
        backbone: The network with its preconditioning, with ``img_channels``, ``img_resolution``
            and ``label_dim`` as published.
        sigma_min: The noise at time 0; samples keep it.
        sigma_max: The noise at time 1.
        decode: Turns latents into images in [0, 1]; pixels are by default.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        decode: Callable[[Latents], Tensor] | None = None,
    ) -> None:
        network: Any = backbone
        side = int(network.img_resolution)
        super().__init__(
            backbone,
            classes=int(network.label_dim),
            schedule=VarianceExploding(sigma_max, sigma_min=sigma_min),
            kind="x0",
            latent_shape=(int(network.img_channels), side, side),
        )
        self.range: dict[str, Any] = {"sigma_min": sigma_min, "sigma_max": sigma_max}
        if decode is not None or network.img_channels == 3:
            self.decode = decode or _pixels

    @classmethod
    def from_arguments(
        cls,
        *,
        module: str = "training.networks_edm2:Precond",
        network: Mapping[str, Any] | None = None,
        weights: str = "",
        vae: str = "",
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        dtype: str = "float32",
        device: str = "cpu",
        meta: bool = False,
        seed: int = 0,
    ) -> EDMTeacher:
        """Builds a teacher from plain values, as configurations state them.

        Args:
            module: What builds the network (:mod:`~pdmd.teachers.families.module_networks`), such
                as ``training.networks:EDMPrecond`` of EDM.
            network: Its arguments, such as ``img_resolution``, ``img_channels`` and ``label_dim``.
            weights: A safetensors file; random weights without one.
            vae: A pipeline's folder or hub name whose VAE decodes EDM2's latents; none without.
            sigma_min: The noise at time 0.
            sigma_max: The noise at time 1.
            dtype: Type of all weights.
            device: Where they live.
            meta: Whether to leave the network's weights on the meta device.
            seed: Seed of random weights.
        """
        place: dict[str, Any] = {"dtype": dtype, "device": device}
        built = build_network(
            module, network or {}, weights=weights, meta=meta, seed=seed, **place
        )
        decode = latent_decoder(vae, **place) if vae else None
        return cls(built, sigma_min=sigma_min, sigma_max=sigma_max, decode=decode)

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates the network at the noise of the time."""
        sigma = self.schedule(t)[1].float()
        labels = None
        if self.classes:
            labels = one_hot(self.labels(condition, x_t), self.classes + 1)[:, :-1].float()
        return self.backbone(x_t.float(), sigma, labels).to(x_t.dtype)

    def trainable_copy(self) -> Denoiser:
        """Returns a copy of the network that trains, without decoder."""
        copied = EDMTeacher(copy.deepcopy(self.backbone), **self.range)
        return copied.requires_grad_(True).train()


def latent_decoder(folder: str, **place: Any) -> Callable[[Latents], Tensor]:
    """Returns the map from EDM2's latents to images in [0, 1].

    Args:
        folder: A pipeline's folder or hub name, with the VAE.
        place: ``dtype`` and ``device`` of its weights.
    """
    load = load_vae("AutoencoderKL", folder, **place)

    @torch.no_grad()
    def decode(x: Latents) -> Tensor:
        vae = load()
        mean, std = (x.new_tensor(values)[:, None, None] for values in (RAW_MEAN, RAW_STD))
        z = (x / 0.5 * std + mean).to(vae.dtype)
        return vae.decode(z, return_dict=False)[0].float().clamp(0, 1)

    return decode


def _pixels(x: Latents) -> Tensor:
    return (x / 2 + 0.5).clamp(0, 1)
