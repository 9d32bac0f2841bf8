r"""Teaching the glyphs pipeline: a VAE, a text encoder and a transformer of Qwen-Image's classes.

Each is trained on pictures of :mod:`pdmd.teachers.glyph_world` and written into a folder as
``save_pretrained`` would. The VAE minimises

.. math:: \| \hat x - x \|_1 / N + \| \hat x - x \|_2^2 / N + \beta \, \mathrm{KL}(q(z \mid x) \,\|\, \mathcal N(0, 1)) / M

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

from pdmd.teachers.glyph_world import NAMES, GlyphBank

__all__ = ["TEXT", "TRANSFORMER", "VAE", "teach_glyphs", "teach_text_encoder", "teach_vae"]

VAE: dict[str, Any] = {
    "base_dim": 16,
    "z_dim": 4,
    "dim_mult": [1, 2, 4],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True],
}
"""Shape of the VAE: latents have 4 channels and a quarter of a picture's height and width."""

TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "rope_parameters": {"mrope_section": [2, 3, 3], "rope_type": "default", "rope_theta": 1e4},
}
"""Shape of the text encoder."""

TRANSFORMER: dict[str, Any] = {
    "in_channels": 4 * VAE["z_dim"],
    "out_channels": VAE["z_dim"],
    "num_layers": 5,
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "joint_attention_dim": TEXT["hidden_size"],
    "axes_dims_rope": (4, 14, 14),
}
"""Shape of the transformer: 16 tokens of a picture and 9 of text, 128 numbers wide."""

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


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
        error = vae.decoder(vae.post_quant_conv(z)) - x  # decode() would clip, and learn nothing
        return error.abs().mean() + error.square().mean() + kl * divergence

    with _still(vae):
        minimise(loss, vae, updates=updates, lr=lr, name="vae", progress=progress)
        with torch.no_grad():
            x = 2 * bank.draw(2048, generator).pictures[:, :, None] - 1
            z = torch.cat([vae.encode(part).latent_dist.mean for part in x.split(128)])
    std, mean = torch.std_mean(z, dim=(0, 2, 3, 4))
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    return vae.eval().requires_grad_(False)


def make_tokenizer() -> Any:
    """Returns a ``Qwen2Tokenizer`` that knows the pipeline's template and every name by words.

    The pipeline cuts the template's first 34 tokens off, so the template must have as many here.
    """
    import json

    from diffusers import QwenImagePipeline
    from tokenizers import Tokenizer, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import Qwen2Tokenizer

    pipeline = QwenImagePipeline(*[None] * 5)  # type: ignore[arg-type]
    template = pipeline.prompt_template_encode
    bare = template.replace(SPECIAL[1], "").replace(SPECIAL[2], "")
    plain: Any = Tokenizer(BPE())
    plain.pre_tokenizer = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    plain.train_from_iterator([bare.format(name) for name in NAMES], trainer)
    model = json.loads(plain.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        additional_special_tokens=list(SPECIAL[1:]),
    )
    head = template.split("{}")[0]
    assert len(tokenizer(head).input_ids) == pipeline.prompt_template_encode_start_idx
    return tokenizer


def teach_text_encoder(
    bank: GlyphBank,
    tokenizer: Any,
    *,
    updates: int = 1500,
    lr: float = 2e-3,
    seed: int = 0,
    progress: bool = True,
) -> Any:
    """Trains the text encoder to tell the mean shape that a name has in every face.

    Args:
        bank: Shapes of the characters.
        tokenizer: Turns names into tokens.
        updates: Optimizer updates, each over all names.
        lr: Highest learning rate of Adam.
        seed: Seed of the weights.
        progress: Whether to show a progress bar.

    Returns:
        A ``Qwen2_5_VLForConditionalGeneration``, frozen, whose part that sees is not trained.
    """
    from diffusers import QwenImagePipeline
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    shapes = bank.masks.float().mean(2).flatten(0, 1)[:, None] / 255
    shapes = functional.avg_pool2d(shapes, 2).reshape(len(NAMES), -1)
    seeing = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(
                text_config={**TEXT, "vocab_size": len(tokenizer)},
                vision_config={**seeing, "out_hidden_size": TEXT["hidden_size"]},
                tie_word_embeddings=True,
            )
        )
        head = torch.nn.Linear(TEXT["hidden_size"], shapes.shape[1])
    pipeline: Any = QwenImagePipeline(None, None, model, tokenizer, None)  # type: ignore[arg-type]

    def loss() -> Tensor:
        states, mask = pipeline.encode_prompt(list(NAMES), device="cpu")
        last = states[torch.arange(len(NAMES)), mask.sum(1) - 1]
        return functional.binary_cross_entropy_with_logits(head(last), shapes)

    both = torch.nn.ModuleList([model, head])
    minimise(loss, both, updates=updates, lr=lr, name="text encoder", progress=progress)
    return model.eval().requires_grad_(False)


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
