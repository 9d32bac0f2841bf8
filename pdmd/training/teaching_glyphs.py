r"""Teaching the glyphs pipeline: a VAE, a text encoder and a transformer of Qwen-Image's classes.

Each is trained on pictures of :mod:`pdmd.teachers.glyph_world` and written into a folder as
``save_pretrained`` would. The VAE minimises

.. math:: \| \hat x - x \|_1 / N + \beta \, \mathrm{KL}(q(z \mid x) \,\|\, \mathcal N(0, 1)) / M

with N pixels and M latents. The text encoder learns to tell what the character looks like: a
linear map of its last token's state gives the character's mean shape in every face. The
transformer is then taught by flow matching on latents, through
:class:`~pdmd.teachers.qwen_image.QwenImageTeacher`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pdmd.teachers.glyph_world import GlyphBank

__all__ = ["VAE", "teach_vae"]

VAE: dict[str, Any] = {
    "base_dim": 16,
    "z_dim": 4,
    "dim_mult": [1, 2, 4],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True],
}
"""Shape of the VAE: latents have 4 channels and a quarter of a picture's height and width."""


def teach_vae(
    bank: GlyphBank,
    *,
    updates: int = 4000,
    batch_size: int = 32,
    lr: float = 2e-3,
    kl: float = 1e-3,
    seed: int = 0,
    progress: bool = True,
) -> Any:
    """Trains the VAE.

    Args:
        bank: Shapes to draw pictures of.
        updates: Optimizer updates; the rate falls as a cosine.
        batch_size: Pictures in each.
        lr: Highest learning rate of Adam.
        kl: Weight of the divergence of the posterior from a unit normal.
        seed: Seed of weights and draws.
        progress: Whether to show a progress bar.

    Returns:
        An ``AutoencoderKLQwenImage``, frozen, which knows the moments of its latents.
    """
    from diffusers import AutoencoderKLQwenImage

    generator = torch.Generator().manual_seed(seed)
    unit = {"latents_mean": [0.0] * VAE["z_dim"], "latents_std": [1.0] * VAE["z_dim"]}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae: Any = AutoencoderKLQwenImage(**VAE, **unit)
    _drop_past(vae)

    def loss() -> Tensor:
        x = 2 * bank.draw(batch_size, generator).pictures[:, :, None] - 1
        posterior = vae.encode(x).latent_dist
        mean, logvar = posterior.mean, posterior.logvar
        z = mean + torch.randn(mean.shape, generator=generator) * (logvar / 2).exp()
        divergence = (mean.square() + logvar.exp() - 1 - logvar).mean() / 2
        return (vae.decode(z).sample - x).abs().mean() + kl * divergence

    with _still(vae):
        minimise(loss, vae, updates=updates, lr=lr, name="vae", progress=progress)
        with torch.no_grad():
            x = 2 * bank.draw(2048, generator).pictures[:, :, None] - 1
            z = torch.cat([vae.encode(part).latent_dist.mean for part in x.split(128)])
    std, mean = torch.std_mean(z, dim=(0, 2, 3, 4))
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    return vae.eval().requires_grad_(False)


def minimise(
    loss: Any, model: torch.nn.Module, *, updates: int, lr: float, name: str, progress: bool
) -> None:
    """Minimises a loss by Adam at a rate that rises over 2 % of the updates and falls to 0."""
    from tqdm import tqdm

    optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.99))
    for i in (bar := tqdm(range(updates), name, disable=not progress, dynamic_ncols=True)):
        warm = min(1.0, (i + 1) / (0.02 * updates))
        optimizer.param_groups[0]["lr"] = (
            lr * warm * 0.5 * (1 + math.cos(math.pi * i / updates))
        )
        value = loss()
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if i % 50 == 0:
            bar.set_postfix(loss=f"{float(value.detach()):.4f}", refresh=False)


def _drop_past(vae: Any) -> None:
    """Zeroes what the convolutions weigh earlier frames by: a picture has none."""
    for module in vae.modules():
        if isinstance(module, torch.nn.Conv3d):
            with torch.no_grad():
                module.weight[:, :, :-1] = 0


@contextlib.contextmanager
def _still(vae: Any) -> Iterator[None]:
    """Computes the VAE's causal convolutions in the picture's plane, a third of the work.

    A video of one frame meets the last slice of a causal kernel alone; the others see padding.
    """
    from types import MethodType

    causal = [m for m in vae.modules() if isinstance(m, torch.nn.Conv3d)]

    def forward(module: Any, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        padding = (module._padding[2], module._padding[0])
        weight = module.weight[:, :, -1]
        return functional.conv2d(x[:, :, 0], weight, module.bias, padding=padding)[:, :, None]

    for module in causal:
        module.forward = MethodType(forward, module)
    try:
        yield
    finally:
        for module in causal:
            del module.forward
