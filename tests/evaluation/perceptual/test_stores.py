"""Feature stores."""

import pytest
import torch

from pdmd.evaluation.perceptual.stores import FeatureStore


def test_rows_count_up_to_the_first_gap(tmp_path):
    store = FeatureStore(tmp_path / "x", 2)
    store.open({"seed": 1})
    assert store.count() == 0
    x = torch.arange(12.0)[:, None]
    for first in (0, 4, 10):
        store.add(first, {"a": x[first : first + 2 + 2 * (first < 10)]}, 2 + 2 * (first < 10))
    assert store.count() == 8
    assert torch.equal(store.rows("a"), x[:8])
    assert list(store.blocks("b")) == []


def test_rows_of_other_settings_are_not_mixed(tmp_path):
    store = FeatureStore(tmp_path / "x", 2)
    store.open({"seed": 1, "names": ("a",)})
    store.add(0, {"a": torch.zeros(2, 1)}, 2)
    store.open({"seed": 1, "names": ["a"]})
    with pytest.raises(ValueError, match=r"features of seed = 1, not 2; pass --overwrite"):
        store.open({"seed": 2, "names": ["a"]})
    store.clear()
    store.open({"seed": 2})
    assert store.count() == 0


def test_a_damaged_file_is_named(tmp_path):
    store = FeatureStore(tmp_path / "x", 2)
    store.open({})
    store.add(0, {"a": torch.zeros(2, 1)}, 2)
    (path,) = (tmp_path / "x").glob("rows_*")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=f"{path.name} is damaged"):
        store.rows("a")
