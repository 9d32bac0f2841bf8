"""Parallelizes a custom transformer over ranks and compares its gradients with one process.

Runs on one rank as is, and on several with
``torchrun --nproc-per-node 2 examples/05_parallel_plan.py``.
"""

import copy
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import scaled_dot_product_attention, silu

from pdmd.distributed import (
    Columnwise,
    ContextPlan,
    Input,
    Output,
    ParallelPlan,
    PerHead,
    Rowwise,
    TensorPlan,
    context_parallelize,
    tensor_parallelize,
)


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.norm_q, self.norm_k = nn.RMSNorm(width // heads), nn.RMSNorm(width // heads)
        self.proj = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h):
        x = self.norm(h)
        q, k, v = (layer(x).unflatten(2, (self.heads, -1)) for layer in (self.q, self.k, self.v))
        q, k, v = (y.transpose(1, 2) for y in (self.norm_q(q), self.norm_k(k), v))
        h = h + self.proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return h + self.down(silu(self.up(h)))


class Transformer(nn.Module):
    def __init__(self, width=32, heads=4, depth=2):
        super().__init__()
        self.embed = nn.Linear(3, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.out = nn.Linear(width, 3)

    def forward(self, x):
        h = self.embed(x)
        for block in self.blocks:
            h = block(h)
        return self.out(h)

    def parallel_plan(self):
        block = "blocks.*"
        return ParallelPlan(
            units=(block,),
            tensor=TensorPlan(
                styles={
                    f"{block}.q": Columnwise(),
                    f"{block}.k": Columnwise(),
                    f"{block}.v": Columnwise(),
                    f"{block}.norm_q": PerHead(),
                    f"{block}.norm_k": PerHead(),
                    f"{block}.proj": Rowwise(),
                    f"{block}.up": Columnwise(),
                    f"{block}.down": Rowwise(),
                },
                divided={block: ("heads",)},
            ),
            context=ContextPlan(
                split=(Input("blocks.0", "h", dim=1),),
                gather=(Output("out", dim=1),),
                attention={block: "heads"},
            ),
        )


def run(network, x):
    x = x.clone().requires_grad_()
    loss = network(x).square().mean()
    loss.backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    return {"loss": loss.detach(), "x": x.grad} | gradients


def full(gradient, name, partial_over=None):
    if hasattr(gradient, "full_tensor"):
        gradient = gradient.full_tensor()
    if partial_over is not None and name not in ("loss", "x"):
        dist.all_reduce(gradient, group=partial_over.get_group())
    return gradient


ranks = int(os.environ.get("WORLD_SIZE", "1"))
if ranks == 1:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
else:
    dist.init_process_group("gloo")

torch.manual_seed(0)
network = Transformer().double()
x = torch.randn(2, 8, 3, dtype=torch.float64)
alone = run(copy.deepcopy(network), x)
for axis, parallelize in (("tp", tensor_parallelize), ("cp", context_parallelize)):
    mesh = dist.init_device_mesh("cpu", (ranks,), mesh_dim_names=(axis,))
    split = copy.deepcopy(network)
    parallelize(split, mesh)
    error = 0.0
    for name, gradient in run(split, x).items():
        value = full(gradient, name, mesh if axis == "cp" else None)
        error = max(error, float((value - alone[name]).abs().max() / alone[name].abs().max()))
    if dist.get_rank() == 0:
        print(f"{axis} on {ranks} rank(s): largest relative error {error:.1e}")
    assert error < 1e-9
dist.destroy_process_group()
