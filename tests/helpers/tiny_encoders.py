"""Tiny text and image encoders of the model families, and what their pipelines encode."""

import torch
from PIL import Image


def t5(dim):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    words = ["<pad>", "</s>", "<unk>", "a", "cat", "dog"]
    model = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    config = T5Config(vocab_size=8, d_model=dim, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    return tokenizer, T5EncoderModel(config).eval()


def qwen_text(dim):
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

    vocabulary = {c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}
    for special in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"):
        vocabulary[special] = len(vocabulary)
    layers = {"hidden_size": dim, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 8, "num_heads": 2}
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={**layers, **heads, "vocab_size": 512, "rope_parameters": rope},
            vision_config={**vision, "out_hidden_size": dim},
        )
    )
    return Qwen2Tokenizer(vocab=vocabulary, merges=[]), model.eval()


def z_image_text():
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

    vocabulary = {c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}
    for special in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"):
        vocabulary[special] = len(vocabulary)
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[])
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"
    )
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )
    return tokenizer, Qwen3Model(config).eval()


def clip(dim, projected=None):
    """A text encoder of CLIP and its tokenizer, with a projection of a given dimension if any."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
    )

    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    torch.manual_seed(dim)
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=dim,
        intermediate_size=8,
        projection_dim=projected or dim,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
        pad_token_id=len(words) - 1,
    )
    model = (CLIPTextModel if projected is None else CLIPTextModelWithProjection)(config)
    vocabulary = {word: i for i, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=16), model.eval()


def clip_vision(dim):
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=dim,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    side = {"height": 8, "width": 8}
    processor = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size=side)
    return processor, CLIPVisionModel(config).eval()


def picture(seed, width=20, height=12):
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(levels.numpy())


def sd3_text(full=True):
    return (*clip(8, 4), *clip(16, 8), *(t5(32) if full else (None, None)))


def encode_sd3(pipeline, prompts):
    prompt, null, pooled, null_pooled = pipeline.encode_prompt(prompts, None, None)
    return {
        "prompt": torch.cat([prompt, null[:1]]),
        "pooled": torch.cat([pooled, null_pooled[:1]]),
    }


def flux_text():
    return (*clip(12), *t5(32))


def encode_flux(pipeline, prompts):
    length = 512 if pipeline.transformer.config.guidance_embeds else 256
    prompt, pooled, _ = pipeline.encode_prompt([*prompts, ""], max_sequence_length=length)
    return {"prompt": prompt, "pooled": pooled}


def encode_z_image(pipeline, prompts):
    texts, null = pipeline.encode_prompt(list(prompts))
    texts = [*texts, null[0]]
    lengths = [len(text) for text in texts]
    assert len(set(lengths)) == 3
    filled = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return {"prompt": filled, "mask": mask}


def encode_ltx(pipeline, prompts):
    prompt, mask, null, null_mask = pipeline.encode_prompt(list(prompts))
    masks = torch.cat([mask, null_mask[:1]]).bool()
    assert len(set(masks.sum(1).tolist())) == 3
    return {"prompt": torch.cat([prompt, null[:1]]), "mask": masks}


TEXTS = {
    "ltx": [(lambda: t5(32), encode_ltx)],
    "z_image": [(z_image_text, encode_z_image)],
    "flux": [(flux_text, encode_flux)],
    "sd3": [(sd3_text, encode_sd3)],
}


SAME = ("height", "width", "frames", "frame_rate", "guidance_embedded", "cfg_normalization")
