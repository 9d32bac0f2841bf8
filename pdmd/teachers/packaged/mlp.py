"""A multilayer perceptron for vectors: the student network of low-dimensional experiments."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pdmd.arguments import at_least, checked
from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.predictions import Kind
from pdmd.diffusion.schedules import RectifiedFlow, Schedule
from pdmd.typing import Condition, Latents

__all__ = ["MlpDenoiser"]


@checked
class MlpDenoiser(Denoiser):
    """An MLP over vectors, optionally class-conditional.

    Args:
        dim: Dimension :math:`D` of a sample.
        schedule: The forward process.
        kind: The kind of prediction.
        classes: Number of classes; 0 for an unconditional network. Conditions have ``label`` of
            shape :math:`(B)`, where the value ``classes`` is the null class.
        width: Hidden width.
        depth: Number of hidden layers.
        frequencies: Number of frequencies of the time embedding.

    Raises:
        ValueError: If ``dim`` or ``width`` is below 1, or another number negative.
    """

    def __init__(
        self,
        *,
        dim: int,
        schedule: Schedule,
        kind: Kind = "velocity",
        classes: int = 0,
        width: int = 64,
        depth: int = 3,
        frequencies: int = 4,
    ) -> None:
        at_least(1, dim=dim, width=width)
        at_least(0, classes=classes, depth=depth, frequencies=frequencies)
        super().__init__(schedule=schedule, kind=kind, latent_shape=(dim,))
        self.classes = classes
        self.frequencies: Tensor
        self.register_buffer(
            "frequencies", 2.0 ** torch.arange(frequencies) * math.pi / 2, persistent=False
        )
        self.label = nn.Embedding(classes + 1, 16) if classes else None
        inputs = dim + 1 + 2 * frequencies + (16 if classes else 0)
        layers: list[nn.Module] = []
        for i in range(depth):
            layers += [nn.Linear(inputs if i == 0 else width, width), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, dim))

    @classmethod
    def rectified_flow(
        cls, *, dim: int, classes: int = 0, width: int = 64, depth: int = 3
    ) -> MlpDenoiser:
        """Builds a velocity network on rectified flow."""
        return cls(dim=dim, classes=classes, width=width, depth=depth, schedule=RectifiedFlow())

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates the MLP on latents, time features and the embedding of the label."""
        time = t[:, None].to(x_t.dtype)
        phase = time * self.frequencies.to(x_t.dtype)
        features = [x_t, time, phase.sin(), phase.cos()]
        if self.label is not None:
            if condition is None:
                label = torch.full((len(x_t),), self.classes, device=x_t.device)
            else:
                label = condition["label"]
            features.append(self.label(label))
        return self.layers(torch.cat(features, 1))
