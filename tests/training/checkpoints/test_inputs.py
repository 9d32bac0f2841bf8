"""Inputs: digests by which a changed file is noticed."""

import copy
import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pdmd.teachers.conditioning.image_prompts import EncodedImage, ImagePrompt
from pdmd.training.checkpoints import inputs
from pdmd.training.checkpoints.inputs import changed_inputs, digest_input, digest_prompts


@pytest.fixture
def pipeline(tmp_path):
    folder = tmp_path / "pipeline"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "README.md").write_text("a card")
    weights = {f"layer{i}": torch.randn(64, 64) for i in range(3)}
    save_file(weights, folder / "unet" / "model.safetensors")
    return folder


def test_the_files_of_a_folder_are_digested_by_name(pipeline):
    found = digest_input(str(pipeline))
    assert list(found) == ["model_index.json", "unet/model.safetensors"]
    os.utime(pipeline / "model_index.json", (1, 1))
    (pipeline / "README.md").write_text("another card")
    assert digest_input(str(pipeline)) == found == digest_input(f"file://{pipeline}")


@pytest.mark.parametrize("whole", [1 << 30, 16])
def test_one_changed_tensor_is_noticed(pipeline, monkeypatch, whole):
    monkeypatch.setattr(inputs, "WHOLE", whole)  # digested whole, or by its tensors
    before = digest_input(str(pipeline))
    path = pipeline / "unet" / "model.safetensors"
    weights = {f"layer{i}": torch.randn(64, 64) for i in range(3)}
    save_file(weights, path)
    saved = digest_input(str(pipeline))
    save_file({**weights, "layer1": weights["layer1"] + 1}, path)
    after = digest_input(str(pipeline))
    name = "unet/model.safetensors"
    assert len({before[name], saved[name], after[name]}) == 3
    changes = changed_inputs({"folder": saved}, {"folder": after})
    assert changes == {"folder": "unet/model.safetensors differs"}


def test_a_large_file_of_another_kind_is_digested_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "WHOLE", 1000)
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(3_000_000))
    zero = digest_input(str(path))
    path.write_bytes(bytes(2_999_999) + b"x")
    last = digest_input(str(path))
    path.write_bytes(bytes(3_000_001))
    assert zero["a.bin"] != last["a.bin"] and digest_input(str(path)) != zero


def test_missing_added_and_removed_files_are_named(pipeline):
    assert digest_input(str(pipeline / "nothing")) == {}
    old = {"a": {"x": "1", "y": "2"}, "b": {"z": "3"}, "c": {"w": "4"}}
    new = {"a": {"x": "1", "v": "5", "u": "6"}, "b": {"renamed": "3"}, "d": {}}
    assert changed_inputs(old, new) == {"a": "y is gone, u and 1 more is new"}


def test_a_store_is_digested_by_its_index(tmp_path):
    (tmp_path / "index.json").write_text("{}")
    (tmp_path / "embeddings-00000.safetensors").write_bytes(b"1234")
    assert digest_input(str(tmp_path))["embeddings-00000.safetensors"] == "4 bytes"


def test_prompts_are_digested_with_their_order_and_kind():
    lists = [["a", "b"], ["b", "a"], ["a"], [0, 1], ["0", "1"], [None], []]
    images = [[ImagePrompt("a", "x.png")], [ImagePrompt("a", "y.png")], [EncodedImage("ff")]]
    digests = [tuple(digest_prompts(prompts).values()) for prompts in lists + images]
    assert len(set(digests)) == len(digests)
    assert digest_prompts(["a", "b"]) == digest_prompts(("a", "b"))


class Named:
    """A prompt of a user's own, with a ``__repr__`` of its content or without."""

    def __init__(self, text):
        self.text = text


class Shown(Named):
    def __repr__(self):
        return f"Shown({self.text})"


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (["a", "b"], ["b", "a"]),
        ({"text": "a"}, {"text": "b"}),
        (Shown("a"), Shown("b")),
        ((1, [Shown("a")]), (1, [Shown("b")])),
        (torch.zeros(3, dtype=torch.bfloat16), torch.ones(3, dtype=torch.bfloat16)),
        (np.zeros(2000), np.arange(2000) // 1999.0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_prompts_of_other_kinds_are_digested_by_what_they_contain(a, b, caplog):
    assert digest_prompts([a]) == digest_prompts([copy.deepcopy(a)]) != digest_prompts([b])
    assert not caplog.records


def test_prompts_that_say_nothing_of_their_content_are_warned_of_once(caplog):
    assert digest_prompts([Named("a"), Named("b")]) == digest_prompts([Named("b"), Named("a")])
    (record,) = caplog.records
    assert "Named" in record.getMessage() and "__repr__" in record.getMessage()
