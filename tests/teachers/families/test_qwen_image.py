"""Qwen-Image against its pipeline: sampling, guidance, masks, folders, text."""

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from pdmd import (
    Guided,
)
from pdmd.diffusion.schedules import shift_times
from pdmd.teachers import (
    PromptEmbeddings,
    QwenImageTeacher,
)
from pdmd.teachers.base import teachers
from pdmd.teachers.families.tokens import pack, unpack
from tests.helpers.tiny_encoders import qwen_text
from tests.helpers.tiny_families import (
    QWEN,
    close,
    family,
    noise,
    ode,
    qwen_pipeline,
    qwen_vae,
    run_qwen,
    unpadded,
)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"shift": 3.0},
        {"use_dynamic_shifting": True, "max_shift": 0.9, "max_image_seq_len": 8192},
        {
            "use_dynamic_shifting": True,
            "max_shift": 0.9,
            "max_image_seq_len": 8192,
            "shift_terminal": 0.02,
        },
    ],
    ids=["unshifted", "static", "shifted", "released"],
)
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_qwen_image_samples_as_its_pipeline_does(arguments, scale):
    teacher = family("qwen_image")
    null, condition = unpadded(teacher.encode(["random 0"])), teacher.encode(["random 1", None])
    assert null["prompt"].shape[1] < condition["prompt"].shape[1]
    pipeline = qwen_pipeline(teacher, **arguments)
    expected = run_qwen(pipeline, teacher, condition, null, scale=scale, steps=5)
    times = pipeline.scheduler.sigmas.tolist()
    close(ode(Guided(teacher, scale, null), condition, times), expected)
    if "shift_terminal" not in arguments:
        dynamic = "use_dynamic_shifting" in arguments
        shift = teacher.shift if dynamic else arguments.get("shift", 1.0)
        even = 1 - torch.arange(6, dtype=torch.float64) / 5
        close(torch.tensor(times, dtype=torch.float64), shift_times(even, shift), 1e-6)


def test_the_norm_rescale_is_what_the_pipeline_needs():
    teacher = family("qwen_image")
    condition, null = teacher.encode(teacher.prompts), teacher.encode([None])
    pipeline = qwen_pipeline(teacher)
    expected = run_qwen(pipeline, teacher, condition, null, scale=4.0, steps=3)

    class Plain(QwenImageTeacher):
        guide = Guided.guide

    plain = Plain(teacher.backbone, height=64, width=48, prompts=teacher.text)
    times = pipeline.scheduler.sigmas.tolist()
    assert (ode(Guided(plain, 4.0), condition, times) - expected).abs().max() > 1e-2


def test_conditions_without_padding_go_without_a_mask():
    teacher, seen = family("qwen_image"), []
    condition = teacher.encode(teacher.prompts)
    row = condition[:1]
    short = unpadded(row)
    assert short["prompt"].shape[1] < 7
    handle = teacher.backbone.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["encoder_hidden_states_mask"]),
        with_kwargs=True,
    )
    x = noise(teacher, 1)
    unknown = row.exclude("lengths")  # the network would have to read the mask
    with torch.no_grad():
        values = [teacher(x, 0.5, c).value for c in (unknown, row, short)]
        teacher(noise(teacher, 3), 0.5, condition)
    handle.remove()
    assert [mask is None for mask in seen] == [False, True, False, False]
    close(values[0], values[1])
    close(values[0], values[2])


def test_packing_is_the_pipelines():
    from diffusers import QwenImagePipeline

    x = torch.randn(2, 4, 6, 8)
    packed = QwenImagePipeline._pack_latents(x, 2, 4, 6, 8)
    assert torch.equal(pack(x), packed)
    assert torch.equal(unpack(packed, 6, 8), x)


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


def test_long_texts_are_cut_where_a_call_of_the_pipeline_cuts_them(tmp_path):
    teacher, seen = family("qwen_image"), []
    pipeline = qwen_pipeline(teacher, text=qwen_text(QWEN["joint_attention_dim"]))
    pipeline.save_pretrained(tmp_path)
    loaded = QwenImageTeacher.from_pretrained(tmp_path, height=64, width=48, dtype="float32")
    text = "a cat on a mat " * 50  # a token a letter
    handle = teacher.backbone.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["encoder_hidden_states"]),
        with_kwargs=True,
    )
    call = {"height": 64, "width": 48, "num_inference_steps": 1, "output_type": "latent"}
    pipeline(text, true_cfg_scale=1.0, **call)
    handle.remove()
    close(loaded.encode([text])["prompt"], seen[0])


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
    with pytest.raises(ValueError, match=r"the teacher has no prompts; pass prompts="):
        _ = loaded.prompts
    whole = shards[1].read_bytes()
    shards[1].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot load .*transformer"):
        QwenImageTeacher.from_pretrained(tmp_path, **size)
    shards[1].unlink()
    with pytest.raises(ValueError, match="cannot load .*transformer .*00002-of"):
        QwenImageTeacher.from_pretrained(tmp_path, **size)


def test_unknown_prompts_are_named():
    teacher = family("qwen_image")
    with pytest.raises(ValueError, match="no embedding of the prompt 'a cat'"):
        teacher.encode(["a cat"])
    rows = TensorDict({"prompt": torch.zeros(2, 3, 4)}, batch_size=[2])
    with pytest.raises(ValueError, match="is repeated"):
        PromptEmbeddings(["a", "a"], rows)
    with pytest.raises(ValueError, match="1 prompts for 2 embeddings"):
        PromptEmbeddings(["a"], rows)
    own = PromptEmbeddings(
        ["a", None], rows + TensorDict({"prompt": torch.eye(2)[..., None, None]})
    )
    assert list(own.prompts) == ["a"]
