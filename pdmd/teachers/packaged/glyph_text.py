r"""Tokenizer and text encoder of the glyphs pipeline.

The text encoder is pretrained to predict the appearance of a character from its name: a linear
head on the last hidden state :math:`h` minimises the binary cross-entropy
:math:`\mathrm{BCE}(\mathrm{sigmoid}(W h + b), \bar m)` with the mean mask :math:`\bar m` of the
character in every face.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pdmd.extras import require
from pdmd.teachers.packaged.glyph_world import NAMES, GlyphBank
from pdmd.teachers.packaged.pretraining import minimise

__all__ = ["TEXT", "build_tokenizer", "pretrain_text_encoder"]

TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "rope_parameters": {"mrope_section": [2, 3, 3], "rope_type": "default", "rope_theta": 1e4},
}
"""Configuration of the text encoder."""

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def build_tokenizer() -> Any:
    """Trains a ``Qwen2Tokenizer`` whose tokens are the words of the template and of all names.

    The pipeline drops the first 34 tokens, those of the template of Qwen-Image, so the template
    must have as many tokens here.
    """
    require("diffusers", "tokenizers", "transformers")
    from tokenizers import Tokenizer, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import Qwen2Tokenizer

    pipeline = _pipeline()
    template = pipeline.prompt_template_encode
    text = template.replace(SPECIAL[1], "").replace(SPECIAL[2], "")
    bpe: Any = Tokenizer(BPE())
    bpe.pre_tokenizer = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([text.format(name) for name in NAMES], trainer)
    model = json.loads(bpe.to_str())["model"]
    merges: Any = [tuple(pair) for pair in model["merges"]]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=merges,
        additional_special_tokens=list(SPECIAL[1:]),
    )
    prefix = template.split("{}")[0]
    assert len(tokenizer(prefix).input_ids) == pipeline.prompt_template_encode_start_idx
    return tokenizer


def pretrain_text_encoder(
    bank: GlyphBank,
    tokenizer: Any,
    *,
    updates: int = 600,
    lr: float = 2e-3,
    seed: int = 0,
    progress: bool = True,
) -> Any:
    """Pretrains the text encoder to predict the mean mask of a character in every face.

    Args:
        bank: Masks of the characters.
        tokenizer: The tokenizer, as :func:`build_tokenizer` returns it.
        updates: Number of optimizer updates, each on all names.
        lr: Peak learning rate of Adam.
        seed: Seed of the weights.
        progress: Whether to show a progress bar.

    Returns:
        A ``Qwen2_5_VLForConditionalGeneration``, frozen, with an untrained vision encoder.
    """
    require("diffusers", "transformers")
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    shapes = bank.masks.float().mean(2).flatten(0, 1)[:, None] / 255
    shapes = functional.avg_pool2d(shapes, 2).reshape(len(NAMES), -1)
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    tokens = dict.fromkeys(special, tokenizer.pad_token_id)
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(
                text_config={**TEXT, **tokens, "vocab_size": len(tokenizer)},
                vision_config={**vision, "out_hidden_size": TEXT["hidden_size"]},
                tie_word_embeddings=True,
            )
        )
        head = torch.nn.Linear(TEXT["hidden_size"], shapes.shape[1])
    pipeline = _pipeline(model, tokenizer)

    def loss() -> Tensor:
        states, mask = pipeline.encode_prompt(list(NAMES), device="cpu")
        last = states[torch.arange(len(NAMES)), mask.sum(1) - 1]
        return functional.binary_cross_entropy_with_logits(head(last), shapes)

    both = torch.nn.ModuleList([model, head])
    minimise(loss, both, updates=updates, lr=lr, name="text encoder", progress=progress)
    return model.eval().requires_grad_(False)


def _pipeline(text_encoder: Any = None, tokenizer: Any = None) -> Any:
    """Returns a Qwen-Image pipeline of the text parts only, which has the prompt template."""
    require("diffusers", "diffusers")
    from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline

    parts: Any = (None, None, text_encoder, tokenizer, None)
    return QwenImagePipeline(*parts)
