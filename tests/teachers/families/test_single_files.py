"""A network in a single file, with the other parts of a pipeline's folder."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from pdmd.teachers import QwenImageTeacher, WanTeacher
from tests.helpers.exporting import qwen_folder, wan_folder
from tests.helpers.tiny_families import QWEN, family

SIZE = {"height": QWEN["height"], "width": QWEN["width"], "dtype": "float32"}
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


def test_a_file_with_the_names_of_the_first_release_is_converted(tmp_path):
    base = wan_folder(tmp_path / "base", "wan_2.1")
    state = {k: v + 0.5 for k, v in weights(family("wan_2.1")).items()}
    file = tmp_path / "wan.safetensors"
    save_file({f"model.diffusion_model.{released(k)}": v for k, v in state.items()}, file)
    size = {"height": 32, "width": 16, "frames": 9, "dtype": "float32"}
    same(weights(WanTeacher.from_pretrained(file, config=base, **size)), state)


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
    with pytest.raises(ValueError, match=r"cannot load .*other\.safetensors"):
        QwenImageTeacher.from_pretrained(tmp_path / "other.safetensors", config=base, **SIZE)
