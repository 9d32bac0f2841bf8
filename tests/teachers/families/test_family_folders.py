"""Model families from folders, text and arguments."""

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from pdmd import Guided
from pdmd.diffusion.schedules import shift_times
from pdmd.teachers import PromptEmbeddings, QwenImageTeacher, RoutedTeacher, WanTeacher
from pdmd.teachers.base import teachers
from tests.helpers.tiny_families import (
    FAMILIES,
    QWEN,
    WAN,
    close,
    family,
    noise,
    qwen_pipeline,
    qwen_vae,
    run_qwen,
    transformers,
    wan_pipeline,
    wan_vae,
)


def test_qwen_image_loads_from_its_pipelines_folder(tmp_path):
    teacher = family("qwen_image")
    arguments = {"use_dynamic_shifting": True, "base_shift": 0.4, "max_shift": 0.7}
    qwen_pipeline(teacher, **arguments, max_image_seq_len=4096).save_pretrained(tmp_path)
    loaded = QwenImageTeacher.from_pretrained(
        tmp_path, height=64, width=48, embeddings=teacher.text, dtype="float32"
    )
    condition, x = teacher.encode(teacher.prompts), noise(teacher, 3)
    with torch.no_grad():
        assert torch.equal(loaded(x, 0.5, condition).value, teacher(x, 0.5, condition).value)
    mu = 0.4 + 0.3 * (12 - 256) / (4096 - 256)
    assert loaded.shift == pytest.approx(np.exp(mu))
    vae = qwen_vae()
    mean, std = (
        torch.tensor(v).view(1, -1, 1, 1, 1)
        for v in (vae.config.latents_mean, vae.config.latents_std)
    )
    with torch.no_grad():
        expected = vae.decode(x[:, :, None] * std + mean).sample[:, :, 0]
    close(loaded.decode(x), (expected / 2 + 0.5).clamp(0, 1))
    named = teachers.get("qwen_image")(folder=str(tmp_path), height=64, width=48, meta=True)
    assert {p.device.type for p in named.parameters()} == {"meta"}
    shapes = {k: v.shape for k, v in teacher.state_dict().items()}
    assert {k: v.shape for k, v in named.state_dict().items()} == shapes


@pytest.mark.parametrize(
    "arguments", [{}, {"shift": 3.0}, {"use_dynamic_shifting": True, "max_image_seq_len": 8192}]
)
def test_the_shift_of_qwen_image_is_what_its_pipeline_walks(tmp_path, arguments):
    teacher = family("qwen_image")
    pipeline = qwen_pipeline(teacher, **arguments)
    pipeline.save_pretrained(tmp_path)
    size = {"height": 64, "width": 48}
    for meta in (False, True):
        loaded = QwenImageTeacher.from_pretrained(tmp_path, meta=meta, dtype="float32", **size)
        assert loaded.with_backbone(loaded.backbone).shift == loaded.shift
    condition, null = teacher.encode(["random 0"]), teacher.encode([None])
    run_qwen(pipeline, teacher, condition, null, scale=1.0, steps=5)
    walked = torch.tensor(pipeline.scheduler.sigmas.tolist(), dtype=torch.float64)
    even = 1 - torch.arange(6, dtype=torch.float64) / 5
    close(walked, shift_times(even, loaded.shift), 1e-6)


@pytest.mark.parametrize("name", ["wan_2.1", "wan_2.2_a14b", "wan_2.2_5b"])
def test_wan_loads_from_its_pipelines_folder(tmp_path, name):
    teacher = family(name)
    first = transformers(teacher)[0]
    wan_pipeline(teacher, expand=name == "wan_2.2_5b").save_pretrained(tmp_path)
    size = (teacher.first if isinstance(teacher, RoutedTeacher) else teacher).options
    arguments = {k: size[k] for k in ("height", "width", "frames")}
    text = (teacher.first if isinstance(teacher, RoutedTeacher) else teacher).text
    loaded = WanTeacher.from_pretrained(tmp_path, embeddings=text, dtype="float32", **arguments)
    assert isinstance(loaded, RoutedTeacher) == (name == "wan_2.2_a14b")
    assert loaded.latent_shape == teacher.latent_shape and loaded.shift == 3.0
    condition, x = teacher.encode(teacher.prompts), noise(teacher, 3)
    t = torch.tensor([0.95, 0.875, 0.3])
    with torch.no_grad():
        close(loaded(x, t, condition).value, teacher(x, t, condition).value, 1e-6)
    for key, weight in teacher.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[key])
    half = WanTeacher.from_pretrained(tmp_path, dtype="bfloat16", **arguments)
    drawn = WanTeacher.from_config(**{**FAMILIES[name][1], "dtype": "bfloat16"})
    dtypes = {k: v.dtype for k, v in half.state_dict().items()}
    assert {k: v.dtype for k, v in drawn.state_dict().items()} == dtypes
    assert set(dtypes.values()) == {torch.bfloat16, torch.float32}
    assert first.dtype == torch.float32
    if name == "wan_2.1":
        vae = wan_vae()
        mean, std = (
            torch.tensor(v).view(1, -1, 1, 1, 1)
            for v in (vae.config.latents_mean, vae.config.latents_std)
        )
        with torch.no_grad():
            expected = vae.decode(x[:1] * std + mean).sample
        assert expected.shape == (1, 3, 9, 32, 16)
        close(loaded.decode(x[:1]), (expected / 2 + 0.5).clamp(0, 1))


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


def test_wan_encodes_text_as_its_pipeline_does(tmp_path):
    teacher = family("wan_2.1")
    pipeline = wan_pipeline(teacher, text=t5(WAN["text_dim"]))
    pipeline.save_pretrained(tmp_path)
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\n")
    loaded = teachers.get("wan")(
        folder=str(tmp_path),
        prompts=str(tmp_path / "prompts.txt"),
        height=32,
        width=16,
        frames=9,
        dtype="float32",
    )
    assert list(loaded.prompts) == ["a cat", "a dog"]
    condition = loaded.encode([*loaded.prompts, None])
    expected, null = pipeline.encode_prompt(["a cat", "a dog"], max_sequence_length=512)
    close(condition["prompt"], torch.cat([expected, null[:1]]))
    assert condition["prompt"].shape == (3, 512, 32)
    with pytest.raises(ValueError, match="a text or None, got 3"):
        loaded.encode([3])


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


def test_qwen_image_encodes_text_as_its_pipeline_does(tmp_path):
    teacher = family("qwen_image")
    pipeline = qwen_pipeline(teacher, text=qwen_text(QWEN["joint_attention_dim"]))
    pipeline.save_pretrained(tmp_path)
    prompts = ["a cat", "a much longer prompt about a dog"]
    loaded = QwenImageTeacher.from_pretrained(
        tmp_path, height=64, width=48, prompts=prompts, dtype="float32"
    )
    loaded.text.batch_size = 1  # so that lengths differ between batches
    condition = loaded.encode(prompts)
    embeddings, mask = pipeline.encode_prompt(prompts)
    assert torch.equal(condition["mask"], mask.bool()) and not mask.bool().all()
    close(condition["prompt"], embeddings)
    x = noise(loaded, 2)
    with torch.no_grad():  # the prompts' length is not the null's
        guided = Guided(loaded, 4.0)(x, 0.5, condition).value
        null = loaded(x, 0.5, loaded.encode([" "] * 2)).value
        value = loaded(x, 0.5, condition).value
    close(guided, loaded.guide(value, null, 4.0))


def test_shards_load_and_what_is_missing_is_named(tmp_path):
    teacher = family("qwen_image")
    pipeline = qwen_pipeline(teacher)
    pipeline.save_pretrained(tmp_path, max_shard_size="20KB")
    folder = tmp_path / "transformer"
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 2
    (folder / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"a variant, not asked for")
    size = {"height": 64, "width": 48, "dtype": "float32"}
    loaded = QwenImageTeacher.from_pretrained(tmp_path, **size)
    for key, weight in teacher.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[key])
    with pytest.raises(ValueError, match=r"no prompts to draw from; pass prompts="):
        _ = loaded.prompts
    whole = shards[1].read_bytes()
    shards[1].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot load .*transformer"):
        QwenImageTeacher.from_pretrained(tmp_path, **size)
    shards[1].unlink()
    with pytest.raises(ValueError, match="cannot load .*transformer .*00002-of"):
        QwenImageTeacher.from_pretrained(tmp_path, **size)


@pytest.mark.parametrize("name", ["qwen_image", "wan"])
def test_a_missing_folder_is_named(tmp_path, name):
    with pytest.raises(ValueError, match="cannot load .*nowhere.* save_pretrained wrote"):
        teachers.get(name)(folder=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("qwen_image", {"height": 40}, "height is a multiple of 16, got 40"),
        ("qwen_image", {"attention_head_dim": 7}, "even and at least 8, got 7"),
        ("qwen_image", {"dtype": "int8"}, "float32, bfloat16 or float16, got 'int8'"),
        ("qwen_image", {"prompts": "file.txt"}, "need a text encoder"),
        ("qwen_image", {"random_prompts": 0}, "random_prompts is at least 1, got 0"),
        ("wan", {"frames": 8}, "frames are a multiple of 4 and one, got 8"),
        ("wan", {"width": 24}, "width is a multiple of 16, got 24"),
        ("wan", {"boundary_ratio": 1.5}, r"in \(0, 1\), got 1.5"),
    ],
)
def test_bad_arguments_are_named(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        teachers.get(name)(**{**(QWEN if name == "qwen_image" else WAN), **arguments})


def test_unsupported_networks_are_refused():
    from diffusers import QwenImageTransformer2DModel, WanTransformer3DModel

    with torch.device("meta"):
        video = WanTransformer3DModel(in_channels=36, num_layers=1)
        image = QwenImageTransformer2DModel(guidance_embeds=True, num_layers=1)
    with pytest.raises(ValueError, match="needs a first image"):
        WanTeacher(video)
    with pytest.raises(ValueError, match="guidance_embeds"):
        QwenImageTeacher(image)


def test_unknown_prompts_are_named():
    teacher = family("qwen_image")
    with pytest.raises(ValueError, match="no embedding of the prompt 'a cat'"):
        teacher.encode(["a cat"])
    rows = TensorDict({"prompt": torch.zeros(2, 3, 4)}, batch_size=[2])
    with pytest.raises(ValueError, match="comes twice"):
        PromptEmbeddings(["a", "a"], rows)
    with pytest.raises(ValueError, match="1 prompts for 2 embeddings"):
        PromptEmbeddings(["a"], rows)
    own = PromptEmbeddings(
        ["a", None], rows + TensorDict({"prompt": torch.eye(2)[..., None, None]})
    )
    assert list(own.prompts) == ["a"]


def test_full_size_builds_without_memory():
    qwen, wan = (teachers.get(name)(meta=True) for name in ("qwen_image", "wan"))
    counts = [sum(p.numel() for p in t.parameters()) for t in (qwen, *wan.routed.denoisers)]
    assert [round(n / 1e9, 1) for n in counts] == [20.4, 14.3, 14.3]
    assert qwen.backbone.config.axes_dims_rope == (16, 56, 56)
    tables = [qwen.backbone.pos_embed.pos_freqs, wan.first.backbone.rope.freqs_cos]
    assert {table.device.type for table in tables} == {"cpu"}
    assert qwen.latent_shape == (16, 128, 128) and wan.latent_shape == (16, 21, 60, 104)
