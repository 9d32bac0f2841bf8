"""Weights on disk: shards, their index, dtypes and added changes."""

import json

import pytest
import torch
from safetensors.torch import load_file

from pdmd.export.weights import STEM, parse_size, write_weights

WEIGHTS = {"a": torch.arange(6.0), "b": torch.ones(4), "c": torch.zeros(2)}


@pytest.mark.parametrize(
    ("text", "size"), [("10GB", 10**10), ("500 MB", 5 * 10**8), ("1.5k", 1500), ("7", 7)]
)
def test_sizes_are_parsed(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "0", "-1GB", "10TB", "9" * 400, f"{'9' * 305}GB"])
def test_invalid_sizes_raise(text):
    with pytest.raises(ValueError, match="expected a size such as 10GB"):
        parse_size(text)


def test_a_single_shard_has_no_index(tmp_path):
    write_weights(tmp_path, WEIGHTS, types=lambda name, value: value.dtype, shard=1000)
    (path,) = tmp_path.iterdir()
    assert path.name == f"{STEM}.safetensors"
    written = load_file(path)
    assert all(torch.equal(written[name], value) for name, value in WEIGHTS.items())


def test_shards_are_filled_in_order_and_listed(tmp_path):
    sizes = []
    types = {"a": torch.float32, "b": torch.bfloat16, "c": torch.float32}
    write_weights(
        tmp_path, WEIGHTS, types=lambda name, _: types[name], shard=24, tell=sizes.append
    )
    index = json.loads((tmp_path / f"{STEM}.safetensors.index.json").read_text())
    files = [f"{STEM}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert index["weight_map"] == {"a": files[0], "b": files[1], "c": files[1]}
    assert sizes == [24, 8, 8] and index["metadata"] == {"total_size": 40}
    assert load_file(tmp_path / files[1])["b"].dtype == torch.bfloat16


def test_changes_are_added_in_float32(tmp_path):
    weight = {"w": torch.ones(2, dtype=torch.bfloat16)}
    changes = {"w": lambda: torch.full((2,), 0.001)}
    write_weights(tmp_path, weight, types=lambda *_: torch.float32, shard=1000, changes=changes)
    assert load_file(tmp_path / f"{STEM}.safetensors")["w"].tolist() == pytest.approx([1.001] * 2)


def test_weights_beyond_the_range_of_float16_raise(tmp_path):
    weights = {"small": torch.ones(2), "large": torch.tensor([0.0, -1e5])}
    with pytest.raises(ValueError, match="large has a value of size 100000, .*bfloat16"):
        write_weights(tmp_path, weights, types=lambda *_: torch.float16, shard=1000)
    write_weights(tmp_path, weights, types=lambda *_: torch.bfloat16, shard=1000)
    assert load_file(tmp_path / f"{STEM}.safetensors")["large"].isfinite().all()


def test_an_added_change_counts_for_the_range(tmp_path):
    weight = {"w": torch.full((2,), 6e4, dtype=torch.float16)}
    changes = {"w": lambda: torch.full((2,), 6e4)}
    with pytest.raises(ValueError, match="w has a value of size 1"):
        write_weights(
            tmp_path, weight, types=lambda *_: torch.float16, shard=1000, changes=changes
        )
