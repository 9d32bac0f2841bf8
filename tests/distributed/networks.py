"""A small transformer whose plan needs every style."""

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from pdmd.distributed import (
    Columnwise,
    ContextPlan,
    Input,
    NormAcrossHeads,
    Output,
    PackedColumnwise,
    PackedRowwise,
    ParallelPlan,
    PerHead,
    TensorPlan,
)

__all__ = ["Block", "Network"]


class Block(nn.Module):
    """Attention and perceptron in one: every style at once."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.norm_q = nn.RMSNorm(width)
        self.norm_k = nn.RMSNorm(width // heads)
        self.up = nn.Linear(width, 2 * width)
        self.out = nn.Linear(3 * width, width)

    def forward(self, h):
        x = self.norm(h)
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k, v = (y.unflatten(2, (self.heads, -1)) for y in (self.norm_q(q), k, v))
        q, k, v = (y.transpose(1, 2) for y in (q, self.norm_k(k), v))
        attended = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return h + self.out(torch.cat([attended, nn.functional.gelu(self.up(x))], -1))


class Network(nn.Module):
    def __init__(self, width=16, heads=4, depth=2):
        super().__init__()
        self.width = width
        self.embed = nn.Linear(3, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.out = nn.Linear(width, 3)

    def forward(self, x):
        h = self.embed(x)
        for block in self.blocks:
            h = block(h)
        return self.out(h)

    def parallel_plan(self):
        width = self.width
        return ParallelPlan(
            units=("blocks.*",),
            tensor=TensorPlan(
                styles={
                    "blocks.*.qkv": PackedColumnwise((width, width, width)),
                    "blocks.*.norm_q": NormAcrossHeads(),
                    "blocks.*.norm_k": PerHead(),
                    "blocks.*.up": Columnwise(),
                    "blocks.*.out": PackedRowwise((width, 2 * width)),
                },
                divided={"blocks.*": ("heads",)},
            ),
            context=ContextPlan(
                split=(Input("blocks.0", "h", dim=1),),
                gather=(Output("out", dim=1),),
                attention={"blocks.*": "heads"},
            ),
        )
