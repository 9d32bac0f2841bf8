"""A network in a single file, with the other parts of a pipeline's folder."""

import re
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from pdmd.teachers import QwenImageTeacher, WanTeacher
from tests.helpers.exporting import qwen_folder, wan_folder
from tests.helpers.tiny_families import QWEN, family

SIZE = {"height": QWEN["height"], "width": QWEN["width"], "dtype": "float32"}
WAN = {"height": 32, "width": 16, "frames": 9, "dtype": "float32"}
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
RELEASED = {  # the names of Wan as first released
    r"^condition_embedder\.time_embedder\.linear_1": "time_embedding.0",
    r"^condition_embedder\.time_embedder\.linear_2": "time_embedding.2",
    r"^condition_embedder\.text_embedder\.linear_1": "text_embedding.0",
    r"^condition_embedder\.text_embedder\.linear_2": "text_embedding.2",
    r"^condition_embedder\.time_proj": "time_projection.1",
    r"^scale_shift_table": "head.modulation",
    r"^proj_out": "head.head",
    r"scale_shift_table": "modulation",
    r"\.norm2\.": ".norm3.",
    r"ffn\.net\.0\.proj": "ffn.0",
    r"ffn\.net\.2": "ffn.2",
    r"attn1": "self_attn",
    r"attn2": "cross_attn",
    r"\.to_out\.0\.": ".o.",
    r"\.to_([qkv])\.": r".\1.",
}


def released(name):
    for pattern, new in RELEASED.items():
        name = re.sub(pattern, new, name)
    return name


def weights(teacher):
    return teacher.backbone.state_dict()


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=0)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return qwen_folder(tmp_path_factory.mktemp("base"))


def test_a_file_replaces_the_network_of_a_pipeline(base, tmp_path):
    file = tmp_path / "finetuned.safetensors"
    state = {k: v + 0.5 for k, v in load_file(base / WEIGHTS).items()}
    save_file(state, file)
    teacher = QwenImageTeacher.from_pretrained(file, config=base, **SIZE)
    same(weights(teacher), state)
    own, base_teacher = teacher.encode(["a cat"]), QwenImageTeacher.from_pretrained(base, **SIZE)
    torch.testing.assert_close(own["prompt"], base_teacher.encode(["a cat"])["prompt"])
    by_values = QwenImageTeacher.from_arguments(folder=str(file), config=str(base), **SIZE)
    same(weights(by_values), state)


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    state = {k: v + 0.5 for k, v in weights(family("wan_2.1")).items()}
    names = {name: f"model.diffusion_model.{released(name)}" for name in state}
    return SimpleNamespace(
        folder=wan_folder(tmp_path_factory.mktemp("wan"), "wan_2.1"),
        state=state,
        names=names,
        released={names[name]: value.contiguous() for name, value in state.items()},
    )


def test_a_file_with_the_names_of_the_first_release_is_converted(wan, tmp_path):
    file = tmp_path / "wan.safetensors"
    save_file(wan.released, file)
    same(weights(WanTeacher.from_pretrained(file, config=wan.folder, **WAN)), wan.state)


def test_what_is_missing_is_named(base, tmp_path):
    file = tmp_path / "finetuned.safetensors"
    with pytest.raises(ValueError, match="config = FOLDER"):
        QwenImageTeacher.from_pretrained(file, **SIZE)
    with pytest.raises(ValueError, match=r"finetuned\.safetensors is missing"):
        QwenImageTeacher.from_pretrained(file, config=base, **SIZE)
    with pytest.raises(ValueError, match="is for a network's file"):
        QwenImageTeacher.from_pretrained(base, config=base, **SIZE)
    two = wan_folder(tmp_path / "two")
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="two networks"):
        WanTeacher.from_pretrained(file, config=two, dtype="float32")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors lacks weights of a Qwen"):
        QwenImageTeacher.from_pretrained(tmp_path / "other.safetensors", config=base, **SIZE)


def scaled(state, suffix):
    """Returns matrices in float8 with their scales beside them, and the rest in bfloat16."""
    found = {}
    for name, value in state.items():
        if value.ndim == 2 and "blocks" in name:
            scale = value.abs().max() / 448
            found[name] = (value / scale).to(torch.float8_e4m3fn)
            found[f"{name.removesuffix('.weight')}.{suffix}"] = scale.reshape(1).clone()
        else:
            found[name] = value.to(torch.bfloat16).contiguous()
    return found


@pytest.mark.parametrize("suffix", ["scale_weight", "weight_scale"])
def test_a_file_in_float8_is_refused_with_any_names(wan, base, tmp_path, suffix):
    file = tmp_path / "wan.safetensors"
    save_file(scaled(wan.released, suffix), file)
    with pytest.raises(ValueError, match=r"wan\.safetensors has quantised weights \(model\.diff"):
        WanTeacher.from_pretrained(file, config=wan.folder, **WAN)
    save_file(scaled(load_file(base / WEIGHTS), suffix), file)
    with pytest.raises(ValueError, match="has quantised weights"):
        QwenImageTeacher.from_pretrained(file, config=base, **SIZE)


def test_a_file_with_an_adapter_beside_its_weights_is_refused(wan, tmp_path):
    query = next(name for name in wan.released if name.endswith("self_attn.q.weight"))
    pair = {"A": torch.ones(2, 24), "B": torch.ones(24, 2)}
    adapter = {query.replace("weight", f"lora_{k}.weight"): v for k, v in pair.items()}
    file = tmp_path / "wan.safetensors"
    save_file({**wan.released, **adapter}, file)
    with pytest.raises(ValueError, match="has an adapter that is not merged"):
        WanTeacher.from_pretrained(file, config=wan.folder, **WAN)


def test_a_converted_file_keeps_the_widest_of_its_types(wan, tmp_path):
    first = sorted(wan.released)[0]
    file = tmp_path / "wan.safetensors"
    save_file({**wan.released, first: wan.released[first].half()}, file)
    loaded = weights(WanTeacher.from_pretrained(file, config=wan.folder, **WAN))
    wide = {name: value for name, value in wan.state.items() if wan.names[name] != first}
    assert len(wide) == len(loaded) - 1
    same({name: loaded[name] for name in wide}, wide)


def test_a_file_of_a_whole_model_with_names_of_diffusers_loads(base, tmp_path):
    file = tmp_path / "whole.safetensors"
    state = {k: v + 0.5 for k, v in load_file(base / WEIGHTS).items()}
    others = {"vae.decoder.bias": torch.ones(2)}
    save_file({f"model.diffusion_model.{k}": v for k, v in state.items()} | others, file)
    same(weights(QwenImageTeacher.from_pretrained(file, config=base, **SIZE)), state)


def test_a_tensor_that_a_file_lacks_is_named(wan, base, tmp_path):
    file = tmp_path / "wan.safetensors"
    lacking = next(name for name in wan.released if name.endswith("ffn.0.weight"))
    save_file({k: v for k, v in wan.released.items() if k != lacking}, file)
    with pytest.raises(ValueError, match=r"wan\.safetensors lacks weights of a Wan"):
        WanTeacher.from_pretrained(file, config=wan.folder, **WAN)
    state = load_file(base / WEIGHTS)
    lacking = next(iter(state))
    save_file({k: v for k, v in state.items() if k != lacking}, file)
    with pytest.raises(ValueError, match=f"lacks {re.escape(lacking)}"):
        QwenImageTeacher.from_pretrained(file, config=base, **SIZE)


def test_values_without_a_place_in_the_network_are_told(wan, tmp_path):
    file = tmp_path / "wan.safetensors"
    save_file({**wan.released, "model.diffusion_model.vace.weight": torch.ones(3, 5)}, file)
    with pytest.warns(UserWarning, match=r"^15 of the [\d,]+ values in .* have no place"):
        WanTeacher.from_pretrained(file, config=wan.folder, **WAN)
