r"""A small class-conditional diffusion transformer for images.

Patches are embedded as tokens. Every block is modulated (adaLN-single) by one shared projection of
the time and class embedding plus a learned offset per block, as in PixArt-alpha, which keeps the
network small.

References:
    Peebles and Xie, DiT, arXiv:2212.09748; Chen et al., PixArt-alpha, arXiv:2310.00426, Sec. 2.3.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from pdmd.distributed import ParallelPlan

__all__ = ["Block", "ImageTransformer", "ModulatedTransformer"]


class ModulatedTransformer(nn.Module):
    """What transformers of images and videos share: the time's embedding, and the last layer.

    Attributes:
        frequencies: Angular frequencies of the time, with shape (width / 2).
        time: Maps the time's sines and cosines to its embedding.
        modulation: Maps the embedding to the six values that blocks share.
        norm: The last normalization.
        final: Maps the embedding to its shift and scale.
        out: Maps tokens to patches.
    """

    frequencies: Tensor
    time: nn.Module
    modulation: nn.Sequential
    norm: nn.Module
    final: nn.Linear
    out: nn.Linear

    @staticmethod
    def time_frequencies(width: int) -> Tensor:
        """Returns angular frequencies from 1 to 1000, with shape (width / 2)."""
        return torch.exp(torch.linspace(0, math.log(1000), width // 2))

    def start_at_zero(self) -> None:
        """Zeroes the layers by which the network starts as zero, with blocks unmodulated."""
        for layer in (self.modulation[1], self.final, self.out):
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def embed_time(self, t: Tensor) -> Tensor:
        """Embeds times of shape :math:`(B)`, with shape :math:`(B, width)`."""
        angle = t[:, None] * self.frequencies
        return self.time(torch.cat([angle.sin(), angle.cos()], 1))

    def shared(self, c: Tensor) -> Tensor:
        """Returns what blocks share of an embedding, with shape :math:`(B, 6, 1, width)`."""
        return self.modulation(c).unflatten(1, (6, 1, -1))

    def read_out(self, h: Tensor, c: Tensor) -> Tensor:
        """Maps tokens of shape :math:`(B, N, width)` to patches, given the embedding."""
        shift, scale = self.final(functional.silu(c))[:, None].chunk(2, -1)
        return self.out(self.norm(h) * (1 + scale) + shift)


class ImageTransformer(ModulatedTransformer):
    """Predicts one value per pixel from a noisy image, its time and its class.

    Args:
        image_size: Pixels along each side.
        channels: Image channels.
        patch_size: Pixels along each side of a patch.
        width: Token width.
        depth: Number of blocks.
        heads: Attention heads.
        classes: Number of classes; the label ``classes`` is the null class.

    Raises:
        ValueError: If the patches do not tile the image or the heads do not divide the width.
    """

    def __init__(
        self,
        *,
        image_size: int = 8,
        channels: int = 1,
        patch_size: int = 2,
        width: int = 64,
        depth: int = 3,
        heads: int = 4,
        classes: int = 10,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(
                f"patches of {patch_size} do not tile an image of {image_size} pixels"
            )
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        self.config = {
            "image_size": image_size,
            "channels": channels,
            "patch_size": patch_size,
            "width": width,
            "depth": depth,
            "heads": heads,
            "classes": classes,
        }
        self.patch_size = patch_size
        patch = channels * patch_size**2
        self.embed = nn.Linear(patch, width)
        self.position = nn.Parameter(0.02 * torch.randn((image_size // patch_size) ** 2, width))
        self.register_buffer("frequencies", self.time_frequencies(width), False)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes + 1, width)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.final = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, patch)
        self.start_at_zero()

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """Evaluates the transformer.

        Args:
            x: Noisy images, with shape :math:`(B, C, H, W)`.
            t: Times in [0, 1], with shape :math:`(B)`.
            label: Classes, int64, with shape :math:`(B)`.

        Returns:
            The prediction, with shape :math:`(B, C, H, W)`.
        """
        height, p = x.shape[2], self.patch_size
        tokens = functional.pixel_unshuffle(x, p).flatten(2).transpose(1, 2)
        h = self.embed(tokens) + self.position
        c = self.embed_time(t) + self.label(label)
        shared = self.shared(c)
        for block in self.blocks:
            h = block(h, shared)
        h = self.read_out(h, c)
        return functional.pixel_shuffle(h.transpose(1, 2).unflatten(2, (height // p, -1)), p)

    def parallel_plan(self) -> ParallelPlan:
        """Returns how the transformer is parallelized over ranks."""
        from pdmd.distributed import (
            Columnwise,
            ContextPlan,
            Input,
            Output,
            PackedColumnwise,
            ParallelPlan,
            Rowwise,
            TensorPlan,
        )

        width = self.config["width"]
        return ParallelPlan(
            units=("blocks.*",),
            tensor=TensorPlan(
                styles={
                    "blocks.*.qkv": PackedColumnwise((width, width, width)),
                    "blocks.*.proj": Rowwise(),
                    "blocks.*.mlp.0": Columnwise(),
                    "blocks.*.mlp.2": Rowwise(),
                },
                divided={"blocks.*": ("heads",)},
            ),
            context=ContextPlan(
                split=(Input("blocks.0", "h", dim=1, stream="image"),),
                gather=(Output("out", dim=1, stream="image"),),
                attention={"blocks.*": "heads"},
            ),
        )


class Block(nn.Module):
    """One transformer block, modulated by the shared projection plus its own offset."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.offset = nn.Parameter(0.02 * torch.randn(6, 1, width))
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width)
        )

    def forward(self, h: Tensor, shared: Tensor) -> Tensor:
        """Evaluates the block on tokens of shape :math:`(B, N, width)`."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (shared + self.offset).unbind(1)
        qkv = self.qkv(self.norm1(h) * (1 + scale1) + shift1)
        q, k, v = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v)
        h = h + gate1 * self.proj(attended.transpose(1, 2).flatten(2))
        return h + gate2 * self.mlp(self.norm2(h) * (1 + scale2) + shift2)
