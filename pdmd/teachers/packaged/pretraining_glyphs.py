r"""Pretraining of the glyphs pipeline: a VAE, a text encoder and a transformer.

The classes are Qwen-Image's. Each part is trained on images of
:mod:`pdmd.teachers.packaged.glyph_world` and written in the layout of ``save_pretrained``. The VAE
minimises

.. math::
    \| \hat x - x \|_1 / N + \| \hat x - x \|_2^2 / N
    + \beta \, \mathrm{KL}(q(z \mid x) \,\|\, \mathcal N(0, 1)) / M

with :math:`N` pixel values and :math:`M` latent values. The text encoder is that of
:mod:`pdmd.teachers.packaged.glyph_text`, and the transformer is then trained by flow matching on
latents, through :class:`~pdmd.teachers.families.qwen_image.QwenImageTeacher`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pdmd.extras import require
from pdmd.teachers.packaged.glyph_text import TEXT, build_tokenizer, pretrain_text_encoder
from pdmd.teachers.packaged.glyph_world import NAMES, GlyphBank
from pdmd.teachers.packaged.pretraining import minimise

__all__ = ["TRANSFORMER", "VAE", "pretrain_glyphs", "pretrain_transformer", "pretrain_vae"]

VAE: dict[str, Any] = {
    "base_dim": 16,
    "z_dim": 4,
    "dim_mult": [1, 2, 4],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True],
}
"""Configuration of the VAE: 4 latent channels, downsampling by 4 in height and width."""

TRANSFORMER: dict[str, Any] = {
    "in_channels": 4 * VAE["z_dim"],
    "out_channels": VAE["z_dim"],
    "num_layers": 5,
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "joint_attention_dim": TEXT["hidden_size"],
    "axes_dims_rope": (4, 14, 14),
}
"""Configuration of the transformer: 16 image tokens and 9 text tokens, 128 wide."""

PARTS = {
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
    "tokenizer": ["transformers", "Qwen2Tokenizer"],
    "transformer": ["diffusers", "QwenImageTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKLQwenImage"],
}
"""The pipeline's parts and their classes, as ``model_index.json`` lists them."""


def pretrain_vae(
    bank: GlyphBank,
    *,
    updates: int = 3000,
    batch_size: int = 32,
    lr: float = 2e-3,
    kl: float = 1e-3,
    seed: int = 0,
    progress: bool = True,
) -> Any:
    r"""Pretrains the VAE.

    Args:
        bank: Masks to sample images from.
        updates: Number of optimizer updates; the learning rate has a cosine schedule.
        batch_size: Number of images per update.
        lr: Peak learning rate of Adam.
        kl: Weight :math:`\beta` of the KL divergence of the posterior from the standard normal.
        seed: Seed of the weights and of the samples.
        progress: Whether to show a progress bar.

    Returns:
        An ``AutoencoderKLQwenImage``, frozen, with the mean and standard deviation of its latents
        in its configuration.
    """
    generator = torch.Generator().manual_seed(seed)
    unit = {"latents_mean": [0.0] * VAE["z_dim"], "latents_std": [1.0] * VAE["z_dim"]}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae: Any = _diffusers().AutoencoderKLQwenImage(**VAE, **unit)
    _zero_past_kernels(vae)

    def loss() -> Tensor:
        x = 2 * bank.draw(batch_size, generator).pictures[:, :, None] - 1
        posterior = vae.encode(x).latent_dist
        mean, logvar = posterior.mean, posterior.logvar
        z = mean + torch.randn(mean.shape, generator=generator) * (logvar / 2).exp()
        divergence = (mean.square() + logvar.exp() - 1 - logvar).mean() / 2
        error = vae.decoder(vae.post_quant_conv(z)) - x  # decode() clamps, which stops gradients
        return error.abs().mean() + error.square().mean() + kl * divergence

    with _planar_convolutions(vae):
        minimise(loss, vae, updates=updates, lr=lr, name="vae", progress=progress)
        with torch.no_grad():
            x = 2 * bank.draw(2048, generator).pictures[:, :, None] - 1
            posteriors = [vae.encode(part).latent_dist for part in x.split(128)]
    mean = torch.cat([posterior.mean for posterior in posteriors])
    noise = torch.cat([posterior.var for posterior in posteriors])
    variance, mean = torch.var_mean(mean, dim=(0, 2, 3, 4))
    std = (variance + noise.mean((0, 2, 3, 4))).sqrt()  # of posterior samples, which it decodes
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    return vae.eval().requires_grad_(False)


def pretrain_transformer(
    folder: Path,
    bank: GlyphBank,
    *,
    updates: int = 6000,
    batch_size: int = 128,
    lr: float = 1.5e-3,
    pictures: int = 65536,
    seed: int = 0,
    progress: bool = True,
) -> Any:
    """Pretrains the transformer by flow matching on latents of the pipeline's VAE.

    Args:
        folder: Folder of the pipeline, with all other parts.
        bank: Masks to sample images from.
        updates: Number of optimizer updates.
        batch_size: Number of latents per update; the prompt is dropped with probability 0.1, for
            guidance.
        lr: Peak learning rate of Adam.
        pictures: Number of images sampled and encoded, once.
        seed: Seed of the weights and of the samples.
        progress: Whether to show a progress bar.

    Returns:
        A ``QwenImageTransformer2DModel``, frozen.
    """
    from tqdm import tqdm

    from pdmd.teachers.families.pipelines import build_part
    from pdmd.teachers.packaged.glyphs import GlyphsTeacher
    from pdmd.teachers.packaged.pretraining import pretrain

    vae: Any = _diffusers().AutoencoderKLQwenImage.from_pretrained(folder / "vae").float()
    transformer = build_part("QwenImageTransformer2DModel", TRANSFORMER, seed=seed)
    transformer.save_config(folder / "transformer")  # from which the teacher below is built
    teacher: Any = GlyphsTeacher.from_pretrained(folder, meta=True)
    condition: Any = teacher.encode([*NAMES, None])
    denoiser = teacher.with_backbone(transformer).requires_grad_(True).train()

    generator = torch.Generator().manual_seed(seed)
    mean, std = (
        torch.tensor(vae.config[key])[:, None, None] for key in ("latents_mean", "latents_std")
    )
    latents, characters = [], []
    with _planar_convolutions(vae), torch.no_grad():
        parts = range(0, pictures, 512)
        for i in tqdm(parts, "latents", disable=not progress, dynamic_ncols=True):
            glyphs = bank.draw(min(512, pictures - i), generator)
            z = vae.encode(2 * glyphs.pictures[:, :, None] - 1).latent_dist.mean[:, :, 0]
            latents.append((z - mean) / std)
            characters.append(glyphs.character)
    data, character = torch.cat(latents), torch.cat(characters)

    def source(n: int, generator: torch.Generator) -> tuple[Tensor, Any]:
        rows = torch.randint(len(data), (n,), generator=generator)
        dropped = torch.rand(n, generator=generator) < 0.1
        return data[rows], condition[character[rows].masked_fill(dropped, len(NAMES))]

    pretrained: Any = pretrain(
        denoiser,
        source,
        updates=updates,
        batch_size=batch_size,
        lr=lr,
        ema=0.999,
        seed=seed,
        progress=progress,
    )
    return pretrained.backbone.eval().requires_grad_(False)


def pretrain_glyphs(
    folder: str | Path,
    *,
    updates: int = 6000,
    variants: int = 24,
    pictures: int = 65536,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Pretrains all parts of the glyphs pipeline and writes its folder.

    Parts that the folder has are kept, so a call resumes an interrupted one.

    Args:
        folder: Folder of the pipeline.
        updates: Number of updates of the transformer; the VAE is trained for half as many, and the
            text encoder for a tenth.
        variants: Number of sizes and rotations per character and face.
        pictures: Number of images that the transformer is trained on.
        seed: Seed of all weights and samples.
        progress: Whether to show progress bars.

    Returns:
        The folder.

    Raises:
        ValueError: If the folder has files that are not part of the pipeline.
    """
    folder = Path(folder)
    for path in sorted(folder.glob("*")):
        if path.name not in (*PARTS, "model_index.json", "README.md"):
            raise ValueError(
                f"{folder} has {path.name}, which is not part of the pipeline; choose another "
                "--out"
            )
    bank = GlyphBank(variants, seed=seed)
    common: dict[str, Any] = {"seed": seed, "progress": progress}
    folder.mkdir(parents=True, exist_ok=True)
    index = {"_class_name": "QwenImagePipeline", "_diffusers_version": _diffusers().__version__}
    (folder / "model_index.json").write_text(json.dumps(index | PARTS, indent=2) + "\n")
    _diffusers().FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.0, max_shift=0.0
    ).save_pretrained(folder / "scheduler")
    if not _has(folder / "vae"):
        _save(pretrain_vae(bank, updates=max(1, updates // 2), **common), folder / "vae")
    if not _has(folder / "text_encoder"):
        tokenizer = build_tokenizer()
        tokenizer.save_pretrained(folder / "tokenizer")
        encoder = pretrain_text_encoder(bank, tokenizer, updates=max(1, updates // 10), **common)
        _save(encoder, folder / "text_encoder", wide=True)
    if not _has(folder / "transformer"):
        transformer = pretrain_transformer(
            folder, bank, updates=updates, pictures=pictures, **common
        )
        _save(transformer, folder / "transformer")
    return folder


def _diffusers() -> Any:
    require("diffusers", "diffusers")
    import diffusers

    return diffusers


def _has(part: Path) -> bool:
    return any(part.glob("*.safetensors"))


def _save(model: Any, folder: Path, *, wide: bool = False) -> None:
    """Writes a part with weights rounded to float16; ``wide`` stores these as float32.

    transformers loads models in the dtype of the file, diffusers in float32.
    """
    model = model.half()
    (model.float() if wide else model).save_pretrained(folder)


def _zero_past_kernels(vae: Any) -> None:
    """Zeroes the kernel slices of earlier frames: an image is a video of one frame."""
    for module in vae.modules():
        if isinstance(module, torch.nn.Conv3d):
            with torch.no_grad():
                module.weight[:, :, :-1] = 0


@contextlib.contextmanager
def _planar_convolutions(vae: Any) -> Iterator[None]:
    """Replaces the causal 3D convolutions of the VAE by 2D ones, for a third of the cost.

    For a video of one frame only the last temporal slice of a causal kernel meets data; the others
    meet padding.
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
