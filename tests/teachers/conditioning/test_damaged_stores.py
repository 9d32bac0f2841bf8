"""Stores of prompt embeddings that were damaged, or written by someone else."""

import copy
import json
import random
import shutil

import pytest
import torch
from safetensors.torch import load, save

from pdmd.files import FileDigest, own_digest
from pdmd.teachers.conditioning.embeddings import StoredEmbeddings
from tests.helpers.stores import Encoder, embed_quietly, open_store, prompt_names

JUNK = [None, True, -1, 0, 10**15, 1.5, "x", "../../x", [], {}, [None], "\ud800"]


@pytest.fixture
def store(tmp_path):
    embed_quietly(Encoder(), prompt_names(6), tmp_path / "store")
    return tmp_path / "store"


def reindex(store, change):
    """Changes the index and makes its digest agree."""
    path = store / "index.json"
    body = json.loads(path.read_text())
    body.pop("sha256")
    change(body)
    path.write_text(json.dumps({**body, "sha256": own_digest(body)}))


def use(store, tmp_path):
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    stored = open_store(str(store), tmp_path)
    return stored.encode(list(stored.prompts))


def places(value, path=()):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from places(item, (*path, key))


def test_an_index_of_other_values_is_one_line_and_takes_no_space(store, tmp_path):
    good, rng, caught = (store / "index.json").read_text(), random.Random(0), 0

    def mutate(body):
        *path, last = rng.choice(list(places(body)))
        place = body
        for key in path:
            place = place[key]
        if rng.random() < 0.75:
            place[last] = copy.deepcopy(rng.choice(JUNK))
        else:
            del place[last]

    for _ in range(150):
        (store / "index.json").write_text(good)
        reindex(store, mutate)
        try:
            use(store, tmp_path)
        except ValueError as error:
            caught += 1
            assert "\n" not in str(error) and len(str(error)) < 600
            sizes = [p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()]
            assert sum(sizes) < 10**6
    assert caught > 100


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 10**9},
        {"text": 10**12},
        {"tokens": {"prompt": 10**12, "mask": 10**12}},
        {"size": 10**13, "tokens": {"prompt": 10**11, "mask": 10**11}},
        {"file": "../../secret"},
        {"file": "embeddings-00001.safetensors"},
    ],
)
def test_an_index_asks_for_no_more_than_its_files(store, tmp_path, change):
    reindex(store, lambda body: body["shards"][0].update(change))
    with pytest.raises(ValueError, match="damaged"):
        use(store, tmp_path)
    assert sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()) < 10**6


@pytest.mark.parametrize("text", ["[" * 10**5, '{"a":' * 80 + "1" + "}" * 80, "", "[]", "null"])
def test_an_index_of_another_kind(store, tmp_path, text):
    (store / "index.json").write_text(text)
    with pytest.raises(ValueError, match="index.json is damaged"):
        use(store, tmp_path)


def reshard(store, tensors=None, **about):
    """Rewrites the first shard, and the index so that it agrees."""
    path = store / "embeddings-00000.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    known = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["pdmd"])
    data = save({**load(data), **(tensors or {})}, {"pdmd": json.dumps({**known, **about})})
    path.write_bytes(data)
    digest = FileDigest.of(data)
    change = {"size": digest.size, "sha256": digest.sha256}
    reindex(store, lambda body: body["shards"][0].update(change))


@pytest.mark.parametrize(
    "about",
    [
        {"prompts": None},
        {"prompts": [3] * 4},
        {"prompts": ["a"]},
        {"prompts": ["\ud800"] * 4},
        {"entries": {}},
        {"entries": []},
        {"entries": {"prompt": {"dtype": "float32", "shape": [None, 4]}}},
        {"entries": {"prompt": {"dtype": "load", "shape": [None, 3]}}},
        {"content": 3},
        {"format": "1"},
        {"encoder": []},
    ],
)
def test_a_shard_of_other_values_is_one_line(store, tmp_path, about):
    reshard(store, **about)
    with pytest.raises(ValueError, match="embeddings-00000.safetensors") as caught:
        use(store, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_shard_of_other_tensors_is_one_line(store, tmp_path):
    reshard(store, {"prompt.lengths": torch.tensor([-1, 2, 3, 4])})
    with pytest.raises(ValueError, match="embeddings-00000.safetensors") as caught:
        use(store, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_damaged_local_copy_is_named(store, tmp_path):
    use(store, tmp_path)
    folder = next(p for p in (tmp_path / "cache").iterdir() if p.is_dir())
    meta = folder / "meta.json"
    for damage in (lambda: meta.write_text("{"), lambda: meta.unlink()):
        damage()
        stored = StoredEmbeddings(str(store), cache=tmp_path / "cache", progress=False)
        with pytest.raises(ValueError, match=f"{folder.name}, the local copy of .* is damaged"):
            stored.encode([prompt_names(1)[0]])
