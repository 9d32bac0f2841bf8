"""Tiny text encoders of the families' pipelines, over bytes, with random weights."""

from __future__ import annotations

from typing import Any

import torch

from pdmd.extras import require

__all__ = [
    "byt5_encoder",
    "clip_encoder",
    "gemma3_encoder",
    "gemma_encoder",
    "hunyuan_encoder",
    "mistral_encoder",
    "qwen3_encoder",
    "qwen_encoder",
    "qwen_image_processor",
    "reason_encoder",
    "t5_encoder",
    "z_image_encoder",
]

HEADS: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 2}
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VISION = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")


def t5_encoder(dim: int, *, multilingual: bool = False) -> tuple[Any, Any]:
    """Builds T5, or UMT5 of Wan, and its tokenizer.

    Args:
        dim: The dimension of a token.
        multilingual: Whether to build UMT5.
    """
    require("diffusers", "transformers", "tokenizers")
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    words = ["<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )
    kind = "UMT5" if multilingual else "T5"
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(words), d_model=dim, d_kv=4, d_ff=8, num_layers=1, num_heads=2
    )
    torch.manual_seed(0)
    return fast, getattr(transformers, f"{kind}EncoderModel")(config).eval()


def clip_encoder(dim: int, projected: int | None = None) -> tuple[Any, Any]:
    """Builds a text encoder of CLIP and its tokenizer.

    Args:
        dim: The dimension of a token.
        projected: The dimension of the projection; none by default.
    """
    require("diffusers", "transformers", "tokenizers")
    import transformers
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    config = transformers.CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=dim,
        intermediate_size=8,
        projection_dim=projected or dim,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
        pad_token_id=len(words) - 1,
    )
    name = "CLIPTextModel" if projected is None else "CLIPTextModelWithProjection"
    torch.manual_seed(dim)
    model = getattr(transformers, name)(config).eval()
    vocabulary = {word: i for i, word in enumerate(words)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77), model


def qwen_encoder(dim: int, layers: int = 1, *, sees: bool = False) -> tuple[Any, Any]:
    """Builds the vision-language model of Qwen-Image and its tokenizer.

    Args:
        dim: The dimension of a token.
        layers: The number of layers.
        sees: Whether the tokenizer knows the tokens of images, as that of Qwen-Image-Edit does.
    """
    require("diffusers", "transformers", "tokenizers")
    import transformers

    vocabulary = _qwen_vocabulary()
    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6}
    image: dict[str, Any] = {}
    if sees:
        vocabulary |= {word: len(vocabulary) + i for i, word in enumerate(VISION)}
        names = ("vision_start_token_id", "image_token_id", "vision_end_token_id")
        image = {name: vocabulary[word] for name, word in zip(names, VISION, strict=True)}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 8, "num_heads": 2}
    text = {"hidden_size": dim, "intermediate_size": 8, "num_hidden_layers": layers, **HEADS}
    torch.manual_seed(0)
    model = transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(
            text_config={**text, "vocab_size": 512, "rope_parameters": rope},
            vision_config={**vision, "out_hidden_size": dim},
            **image,
        )
    )
    tokenizer = transformers.Qwen2Tokenizer(vocab=vocabulary, merges=[])
    if sees:
        tokenizer.add_special_tokens({"additional_special_tokens": list(VISION)})
    return tokenizer, model.eval()


def qwen_image_processor() -> Any:
    """Builds the image processor of Qwen-Image-Edit, of at most 16 tokens of an image."""
    require("diffusers", "transformers", "PIL")
    import transformers

    cls: Any = getattr(transformers, "Qwen2VLImageProcessorPil", None)
    return (cls or transformers.Qwen2VLImageProcessor)(min_pixels=28**2, max_pixels=16 * 28**2)


def reason_encoder(dim: int, layers: int = 2) -> tuple[Any, Any]:
    """Builds the language model of Cosmos Predict 2.5 and its tokenizer.

    Args:
        dim: The dimension of a token.
        layers: The number of layers, all of which are read.
    """
    tokenizer, model = qwen_encoder(dim, layers)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }} {% for c in m.content %}{{ c.text }}"
        "{% endfor %}<|im_end|>{% endfor %}"
    )
    return tokenizer, model


def byt5_encoder(dim: int) -> tuple[Any, Any]:
    """Builds ByT5, which HunyuanVideo 1.5 encodes quotations with, and its tokenizer.

    Args:
        dim: The dimension of a token.
    """
    require("diffusers", "transformers")
    import transformers

    tokenizer = transformers.ByT5Tokenizer()
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=dim, d_kv=4, d_ff=8, num_layers=1, num_heads=2
    )
    torch.manual_seed(0)
    return tokenizer, transformers.T5EncoderModel(config).eval()


def hunyuan_encoder(dim: int) -> tuple[Any, Any]:
    """Builds the language model of HunyuanVideo 1.5 and its tokenizer.

    Args:
        dim: The dimension of a token.
    """
    require("diffusers", "transformers")
    import transformers

    tokenizer, _ = z_image_encoder(16)
    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6}
    config = transformers.Qwen2_5_VLTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=dim,
        intermediate_size=8,
        num_hidden_layers=3,
        rope_parameters=rope,
        **HEADS,
    )
    torch.manual_seed(0)
    return tokenizer, transformers.Qwen2_5_VLTextModel(config).eval()


def gemma_encoder(dim: int) -> tuple[Any, Any]:
    """Builds Gemma 2, of SANA, and its tokenizer.

    Args:
        dim: The dimension of a token.
    """
    require("diffusers", "transformers", "tokenizers")
    import transformers

    tokenizer, _ = t5_encoder(8)
    config = transformers.Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=dim,
        intermediate_size=8,
        num_hidden_layers=1,
        head_dim=8,
        sliding_window=1024,
        **HEADS,
    )
    torch.manual_seed(0)
    return tokenizer, transformers.Gemma2Model(config).eval()


def gemma3_encoder(dim: int, layers: int = 2) -> tuple[Any, Any]:
    """Builds Gemma 3, of LTX-2, and its tokenizer.

    Args:
        dim: The dimension of a token.
        layers: The number of layers, all of which are read.
    """
    require("diffusers", "transformers", "tokenizers")
    import transformers

    tokenizer, _ = t5_encoder(8)
    text = {
        "vocab_size": 512,
        "hidden_size": dim,
        "intermediate_size": 8,
        "num_hidden_layers": layers,
        "head_dim": 8,
        **HEADS,
    }
    vision = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 28,
        "patch_size": 14,
    }
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(
        transformers.Gemma3Config(
            text_config=text,
            vision_config=vision,
            mm_tokens_per_image=4,
            image_token_index=511,
        )
    )
    return tokenizer, model.eval()


def mistral_encoder(dim: int, layers: int = 30) -> tuple[Any, Any]:
    """Builds the language model of FLUX.2 dev, and a tokenizer in place of its processor.

    Args:
        dim: The dimension of a token.
        layers: The number of layers; the 10th, 20th and 30th are read.
    """
    require("diffusers", "transformers", "tokenizers")
    import transformers

    tokenizer, _ = t5_encoder(8)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }} {% for c in m.content %}{{ c.text }}{% endfor %}"
        "{% endfor %}"
    )
    text = {
        "model_type": "mistral",
        "vocab_size": len(tokenizer),
        "hidden_size": dim,
        "intermediate_size": 8,
        "num_hidden_layers": layers,
        "head_dim": 8,
        **HEADS,
    }
    vision = {
        "model_type": "pixtral",
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    torch.manual_seed(0)
    model = transformers.Mistral3ForConditionalGeneration(
        transformers.Mistral3Config(text_config=text, vision_config=vision)
    )
    return tokenizer, model.eval()


def qwen3_encoder(dim: int, layers: int = 27) -> tuple[Any, Any]:
    """Builds the language model of FLUX.2 klein and its tokenizer.

    Args:
        dim: The dimension of a token.
        layers: The number of layers; the 9th, 18th and 27th are read.
    """
    require("diffusers", "transformers")
    import transformers

    tokenizer, model = z_image_encoder(dim, layers)
    whole = transformers.Qwen3ForCausalLM(model.config)
    whole.model.load_state_dict(model.state_dict())
    return tokenizer, whole.eval()


def z_image_encoder(dim: int, layers: int = 2) -> tuple[Any, Any]:
    """Builds the language model of Z-Image and its tokenizer.

    Args:
        dim: The dimension of a token.
        layers: The number of layers.
    """
    require("diffusers", "transformers", "tokenizers")
    import transformers

    vocabulary = _qwen_vocabulary()
    tokenizer = transformers.Qwen2Tokenizer(vocab=vocabulary, merges=[])
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"
    )
    config = transformers.Qwen3Config(
        vocab_size=len(vocabulary),
        hidden_size=dim,
        intermediate_size=8,
        num_hidden_layers=layers,
        head_dim=8,
        **HEADS,
    )
    torch.manual_seed(0)
    return tokenizer, transformers.Qwen3Model(config).eval()


def _qwen_vocabulary() -> dict[str, int]:
    from tokenizers.pre_tokenizers import ByteLevel

    words = [*sorted(ByteLevel.alphabet()), *SPECIAL]
    return {word: i for i, word in enumerate(words)}
