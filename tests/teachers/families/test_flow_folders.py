"""Model families of the flow kind from folders, text and arguments."""

import json

import pytest
import torch

from pdmd.cli.main import main
from pdmd.planning import footprint
from pdmd.teachers.base import teachers
from tests.helpers.tiny_families import close, family, noise, qwen_pipeline
from tests.helpers.tiny_flows import FLOWS, flow
from tests.teachers.families.test_family_folders import t5


def clip(dim, projected, *, project=True):
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
    )

    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=dim,
        intermediate_size=8,
        projection_dim=projected,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
    )
    model = (CLIPTextModelWithProjection if project else CLIPTextModel)(config)
    vocabulary = {word: i for i, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=16), model.eval()


def sd3_text(full=True):
    return (*clip(8, 4), *clip(16, 8), *(t5(32) if full else (None, None)))


def encode_sd3(pipeline, prompts):
    prompt, null, pooled, null_pooled = pipeline.encode_prompt(prompts, None, None)
    return {
        "prompt": torch.cat([prompt, null[:1]]),
        "pooled": torch.cat([pooled, null_pooled[:1]]),
    }


def flux_text():
    return (*clip(12, 4, project=False), *t5(32))


def encode_flux(pipeline, prompts):
    length = 512 if pipeline.transformer.config.guidance_embeds else 256
    prompt, pooled, _ = pipeline.encode_prompt([*prompts, ""], max_sequence_length=length)
    return {"prompt": prompt, "pooled": pooled}


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
REGISTERED = [*TEXTS, "wan_i2v"]
PROMPTS = ["a cat", "a dog of much longer words"]


@pytest.mark.parametrize("name", [n for n in FLOWS if FLOWS[n].registered in TEXTS])
def test_a_family_loads_from_its_pipelines_folder(tmp_path, name):
    teacher, kind = flow(name), FLOWS[name]
    text, encoded = TEXTS[kind.registered][0]
    pipeline = kind.pipeline(teacher, text=text(), **kind.scheduler)
    pipeline.save_pretrained(tmp_path)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    same = {k: kind.arguments[k] for k in SAME if k in kind.arguments}
    options = {"folder": str(tmp_path), "dtype": "float32", **same}
    loaded = teachers.get(kind.registered)(prompts=str(tmp_path / "prompts.txt"), **options)
    assert loaded.shift == pytest.approx(teacher.shift)
    assert loaded.latent_shape == teacher.latent_shape
    random, x = teacher.encode(teacher.prompts), noise(teacher, 3)
    with torch.no_grad():
        assert torch.equal(loaded(x, 0.5, random).value, teacher(x, 0.5, random).value)
    for key, weight in teacher.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[key])
    condition = loaded.encode([*loaded.prompts, None])
    expected = encoded(pipeline, PROMPTS)
    assert set(condition.keys()) == set(expected)
    for key, value in expected.items():
        close(condition[key].float(), value.float())
    null = condition[2:]
    pictures = kind.run(pipeline, teacher, condition[:2], null, scale=3.0, steps=2, output="pt")
    latents = kind.run(pipeline, teacher, condition[:2], null, scale=3.0, steps=2)
    close(loaded.decode(latents), pictures)
    named = teachers.get(kind.registered)(meta=True, **options)
    assert {p.device.type for p in named.parameters()} == {"meta"}
    assert {b.device.type for b in named.buffers()} <= {"cpu"}
    tables = dict(teacher.named_buffers())
    for path, table in named.named_buffers():
        close(table, tables[path], 1e-6)


def test_sd3_goes_without_t5(tmp_path):
    teacher, kind = flow("sd3"), FLOWS["sd3"]
    pipeline = kind.pipeline(teacher, text=sd3_text(full=False))
    pipeline.save_pretrained(tmp_path)
    loaded = teachers.get("sd3")(folder=str(tmp_path), height=64, width=48, dtype="float32")
    condition = loaded.encode(["a cat", None])
    for key, value in encode_sd3(pipeline, ["a cat"]).items():
        close(condition[key], value)
    assert condition["prompt"].shape == (2, 16 + 256, 32) and not condition["prompt"][:, 16:].any()


@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize("name", REGISTERED)
def test_a_folder_of_another_family_is_refused(tmp_path, name, meta):
    teacher = family("qwen_image")
    qwen_pipeline(teacher).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a QwenImageTransformer2DModel, and this teacher's"):
        teachers.get(name)(folder=str(tmp_path), meta=meta)


@pytest.mark.parametrize("name", REGISTERED)
def test_a_missing_folder_is_named(tmp_path, name):
    with pytest.raises(ValueError, match=r"cannot load .*nowhere.* save_pretrained wrote"):
        teachers.get(name)(folder=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("flux", {"width": 40}, "width is a multiple of 16, got 40"),
        ("flux", {"guidance_embeds": False, "guidance_embedded": 3.0}, "takes no guidance as an"),
        ("flux", {"guidance_embedded": float("nan")}, "is a finite number, got nan"),
        ("flux", {"attention_head_dim": 9}, "even and at least 8, got 9"),
        ("z_image", {"height": 72}, "height is a multiple of 16, got 72"),
        ("z_image", {"width": 8208}, "end at 8192 x 8192 pixels, got an image of 64 x 8208"),
        ("z_image", {"cfg_normalization": -1.0}, "a number from 0, which is none, got -1.0"),
        ("z_image", {"attention_head_dim": 4}, "even and at least 6, got 4"),
        ("ltx", {"frames": 16}, "frames are a multiple of 8 and one, got 16"),
        ("ltx", {"width": 80}, "width is a multiple of 32, got 80"),
        ("ltx", {"frame_rate": 0.0}, "frame_rate is a positive number, got 0.0"),
        ("ltx", {"attention_head_dim": 3}, "even and at least 2, got 3"),
        ("wan_i2v", {"frames": 8}, "frames are a multiple of 4 and one, got 8"),
        ("wan_i2v", {"width": 24}, "width is a multiple of 16, got 24"),
        ("wan_i2v", {"boundary_ratio": 1.5}, r"in \(0, 1\), got 1.5"),
        ("wan_i2v", {"attention_head_dim": 4}, "even and at least 6, got 4"),
        ("sd3", {"height": 40}, "height is a multiple of 16, got 40"),
        ("sd3", {"width": 112}, "ends at 96 pixels, got an image of 64 x 112"),
        ("sd3", {"prompts": "file.txt"}, "need a text encoder"),
    ],
)
def test_bad_arguments_are_named(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        teachers.get(name)(**{**FLOWS[name].arguments, **arguments})


SIZES = {
    "wan_i2v": ({}, 2 * 14_288_901_184),
    "wan_i2v_2.1": ({"boundary_ratio": 0.0, "image_dim": 1280}, 16_394_878_784),
    "wan_i2v_5b": (
        {
            "boundary_ratio": 0.0,
            "replaces_first_frame": True,
            "latent_channels": 48,
            "spatial_compression": 16,
            "num_layers": 30,
            "num_attention_heads": 24,
            "ffn_dim": 14336,
            "width": 1280,
            "random_prompts": 1,
        },
        4_999_787_712,
    ),
    "ltx": ({}, 1_923_385_472),
    "z_image": ({}, 6_154_908_736),
    "flux": ({}, 11_901_408_320),
    "flux_schnell": ({"guidance_embeds": False}, 11_891_178_560),
    "sd3": ({}, 2_028_328_000),
    "sd3.5": (
        {"qk_norm": "rms_norm", "dual_attention_layers": range(13)},
        2_243_171_520,
    ),
}


@pytest.mark.parametrize("name", SIZES)
def test_full_size_builds_without_memory(name):
    arguments, parameters = SIZES[name]
    teacher = teachers.get(FLOWS[name].registered)(meta=True, **arguments)
    assert sum(p.numel() for p in teacher.parameters()) == parameters
    assert {p.device.type for p in teacher.parameters()} == {"meta"}
    assert {b.device.type for b in teacher.buffers()} <= {"cpu"}


@pytest.mark.parametrize("name", REGISTERED)
def test_the_command_line_plans_a_tiny_one(tmp_path, name):
    arguments = "\n".join(f"{k} = {json.dumps(v)}" for k, v in FLOWS[name].arguments.items())
    (tmp_path / "tiny.toml").write_text(
        f'[teacher]\nname = "{name}"\nguidance = [3.0]\n\n[teacher.arguments]\n{arguments}\n\n'
        "[plan]\nphases = 2\n"
    )
    figures = tmp_path / "plan.json"
    assert main(["plan", str(tmp_path / "tiny.toml"), "--json", str(figures)]) == 0
    parameters = sum(p.numel() for p in flow(name).parameters())
    assert str(parameters) in figures.read_text()


@pytest.mark.parametrize(
    ("name", "splits"), [("ltx", False), ("z_image", False), ("sd3", True), ("flux", True)]
)
def test_only_what_a_plan_splits_is_planned_to_be_split(name, splits):
    teacher = flow(name)
    measured = footprint.measure(teacher, teacher.encode(["random 0"]), train=False)
    assert (measured.heads > 0) == splits and len(measured.units) > 0


@pytest.mark.parametrize("train", [False, True])
def test_a_network_of_lists_is_planned_by_its_peaks(monkeypatch, train):
    teacher = flow("z_image")
    condition = teacher.encode(["random 0"])

    def peaks():
        course = footprint.measure(teacher, condition, train=train).recorded
        live = course.bytes(6, (1, 1, 1, 1, 1))
        return live[: course.turn + 1].max(), live[course.turn :].max()

    predicted = peaks()  # from other batches than the one asked
    monkeypatch.setattr(footprint, "_BATCHES", (6, 8))
    assert predicted == pytest.approx(peaks(), rel=0.01)
