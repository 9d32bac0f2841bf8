r"""A small text-conditional diffusion transformer for videos.

Patches of a few frames are embedded as tokens, which attend to each other over space and time and,
as in Wan, to the words of the prompt. A block is

.. math:: h \leftarrow h + \mathrm{CrossAttention}(h, w), \qquad
    h \leftarrow \mathrm{Block}(h, t)

with the words' embeddings :math:`w` and the block of
:mod:`pdmd.teachers.packaged.transformer`, which is modulated by the time.

References:
    Wan Team, Wan, arXiv:2503.20314, Sec. 4.2; Chen et al., PixArt-alpha, arXiv:2310.00426,
    Sec. 2.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pdmd.teachers.packaged.transformer import Block, ModulatedTransformer

if TYPE_CHECKING:
    from pdmd.distributed import ParallelPlan

__all__ = ["VideoTransformer"]


class VideoTransformer(ModulatedTransformer):
    """Predicts one value per pixel from a noisy video, its time and the words of its prompt.

    Args:
        frames: Frames of a video.
        image_size: Pixels along each side of a frame.
        channels: Channels of a frame.
        patch: Frames, and pixels along each side, of a patch.
        width: Token width.
        depth: Number of blocks.
        heads: Attention heads.
        vocabulary: Number of words; word 0 marks the absence of one.
        words: Words of a prompt.

    Raises:
        ValueError: If the patches do not tile the video or the heads do not divide the width.
    """

    def __init__(
        self,
        *,
        frames: int = 8,
        image_size: int = 16,
        channels: int = 1,
        patch: tuple[int, int] = (2, 4),
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        vocabulary: int = 32,
        words: int = 4,
    ) -> None:
        super().__init__()
        self.patch = length, side = tuple(patch)
        if frames % length or image_size % side:
            raise ValueError(
                f"patches of {length} frames and {side} pixels do not tile {frames} frames of "
                f"{image_size} pixels"
            )
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        self.config: dict[str, Any] = {
            "frames": frames,
            "image_size": image_size,
            "channels": channels,
            "patch": self.patch,
            "width": width,
            "depth": depth,
            "heads": heads,
            "vocabulary": vocabulary,
            "words": words,
        }
        values = channels * length * side**2
        self.embed = nn.Linear(values, width)
        self.moment = nn.Parameter(0.02 * torch.randn(frames // length, 1, width))
        self.place = nn.Parameter(0.02 * torch.randn((image_size // side) ** 2, width))
        self.word = nn.Embedding(vocabulary, width)
        self.order = nn.Parameter(0.02 * torch.randn(words, width))
        self.register_buffer("frequencies", self.time_frequencies(width), False)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(VideoBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.final = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, values)
        self.start_at_zero()

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """Evaluates the transformer.

        Args:
            x: Noisy videos, with shape :math:`(B, C, F, H, W)`.
            t: Times in [0, 1], with shape :math:`(B)`.
            tokens: Words of the prompts, int64, with shape :math:`(B, L)`.

        Returns:
            The prediction, with shape :math:`(B, C, F, H, W)`.
        """
        (length, side), (frames, height, width) = self.patch, x.shape[2:]
        grid = (frames // length, height // side, width // side)
        patches = x.unflatten(2, (-1, length)).unflatten(4, (-1, side)).unflatten(6, (-1, side))
        patches = patches.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)
        h = self.embed(patches) + (self.moment + self.place).flatten(0, 1)
        words = self.word(tokens) + self.order
        c = self.embed_time(t)
        shared = self.shared(c)
        for block in self.blocks:
            h = block(h, shared, words)
        h = self.read_out(h, c)
        h = h.unflatten(2, (-1, length, side, side)).unflatten(1, grid)
        return h.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(x.shape)

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
                    "blocks.*.query": Columnwise(),
                    "blocks.*.pair": PackedColumnwise((width, width)),
                    "blocks.*.proj": Rowwise(),
                    "blocks.*.block.qkv": PackedColumnwise((width, width, width)),
                    "blocks.*.block.proj": Rowwise(),
                    "blocks.*.block.mlp.0": Columnwise(),
                    "blocks.*.block.mlp.2": Rowwise(),
                },
                divided={"blocks.*": ("heads",), "blocks.*.block": ("heads",)},
            ),
            context=ContextPlan(
                split=(Input("blocks.0", "h", dim=1, stream="video"),),
                gather=(Output("out", dim=1, stream="video"),),
                attention={"blocks.*.block": "heads"},
            ),
        )


class VideoBlock(nn.Module):
    """Attention to the words of the prompt, followed by a block over space and time."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.pair = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.block = Block(width, heads)

    def forward(self, h: Tensor, shared: Tensor, words: Tensor) -> Tensor:
        """Evaluates the block.

        Args:
            h: Tokens, with shape :math:`(B, N, D)`.
            shared: The shared modulation, with shape :math:`(B, 6, 1, D)`.
            words: Embeddings of the words, with shape :math:`(B, L, D)`.

        Returns:
            Tokens, with shape :math:`(B, N, D)`.
        """
        query = self.query(self.norm(h)).unflatten(2, (self.heads, -1)).transpose(1, 2)
        pair = self.pair(words).unflatten(2, (2, self.heads, -1))
        key, value = pair.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value)
        return self.block(h + self.proj(attended.transpose(1, 2).flatten(2)), shared)
