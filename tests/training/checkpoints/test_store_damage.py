"""Stores whose files were damaged or replaced."""

import enum
import io
import json
import os
import pickle
import random
from pathlib import Path

import fsspec
import pytest
import torch
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    BytesStorageMetadata,
    Metadata,
    TensorProperties,
)

from pdmd.files import FileDigest, own_digest
from pdmd.training.checkpoints.manifest import Manifest
from pdmd.training.checkpoints.store import DamagedCheckpoint, Store
from tests.helpers.checkpoints import check_loads, extend, flip, truncate, weights


@pytest.mark.parametrize("file", [".metadata", "__0_0.distcp"])
@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (truncate, r"is truncated to \d+ of \d+ bytes"),
        (extend, r"has \d+ bytes instead of \d+"),
        (flip, "does not match its SHA-256"),
        (Path.unlink, "is missing"),
    ],
)
def test_damage_is_named(tmp_path, harm, told, file):
    store = Store(tmp_path, keep=4)
    for i in (1, 2, 3, 4):
        store.save(f"{i}", weights(i), {})
    harm(tmp_path / "3" / file)
    flip(tmp_path / "2" / "__0_0.distcp")
    with pytest.raises(DamagedCheckpoint, match=f"3 in {tmp_path} is damaged: {file} {told}") as e:
        store.verify("3")
    assert (e.value.name, e.value.file, e.value.before) == ("3", file, "1")
    assert "is whole is 1: go on from there" in str(e.value)
    assert str(pickle.loads(pickle.dumps(e.value))) == str(e.value)
    with pytest.raises(DamagedCheckpoint, match="no whole one before it: start again"):
        flip(tmp_path / "1" / ".metadata")
        store.verify("2")
    store.verify("4")


def test_a_run_goes_on_from_before_the_damage(tmp_path):
    store = Store(tmp_path)
    for name in ("010", "020"):
        store.save(name, weights(), {})
    flip(tmp_path / "020" / "__0_0.distcp")
    with pytest.raises(DamagedCheckpoint) as caught:
        store.verify("020")
    with pytest.raises(ValueError, match="015 doesn't come after 020"):
        store.save("015", weights(), {})
    store.remove("020")
    assert store.names() == [caught.value.before] == ["010"]
    store.save("015", weights(15), {})
    store.save("020", weights(20), {})
    check_loads(store, "020", weights(20))
    (tmp_path / "mine").mkdir()
    for name in ("010", "mine"):
        with pytest.raises(ValueError, match=f"no checkpoint '{name}'"):
            store.remove(name)
    assert (tmp_path / "mine").is_dir()


def test_a_load_that_misses_a_file_names_it(tmp_path):
    store = Store(tmp_path)
    store.save("1", weights(), {})
    (tmp_path / "1" / "__0_0.distcp").unlink()
    with pytest.raises(DamagedCheckpoint, match="__0_0.distcp is missing"):
        store.load("1", weights())


class Exploit:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_pickle_that_is_not_the_manifests_is_not_read(tmp_path):
    store = Store(tmp_path)
    store.save("1", weights(), {})
    exploit = pickle.dumps(Exploit(tmp_path / "exploited"))
    (tmp_path / "1" / ".metadata").write_bytes(exploit)
    for act in (lambda: store.verify("1"), lambda: store.load("1", weights())):
        with pytest.raises(DamagedCheckpoint, match=".metadata is truncated"):
            act()
    assert not (tmp_path / "exploited").exists()
    pickle.loads(exploit)
    assert (tmp_path / "exploited").exists()


def test_a_damaged_manifest_is_never_chosen(tmp_path):
    store = Store(tmp_path, keep=3)
    store.save("1", weights(1), {"i": 1})
    store.save("2", weights(2), {"i": 2.5, "text": "é"})
    path, content = tmp_path / "2" / "manifest.json", store.content("2")
    whole, memory = path.read_bytes(), fsspec.filesystem("memory")
    caught = 0
    for at in range(len(whole)):
        memory.pipe_file("/2/manifest.json", whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            manifest = Manifest.read(memory, "/2", "here")
            assert manifest.content == content and manifest.name == "2"  # a space became a "!"?
        except DamagedCheckpoint:
            caught += 1
    assert caught == len(whole)
    flip(path)
    assert store.names() == ["1"] and store.latest() == "1"
    for act in (store.verify, store.content, lambda name: store.load(name, weights())):
        with pytest.raises(DamagedCheckpoint, match="manifest.json .*is whole is 1:"):
            act("2")
    store.save("2", weights(3), {})
    check_loads(store, "2", weights(3))


def test_a_later_format_is_neither_read_nor_removed(tmp_path, monkeypatch):
    store = Store(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("pdmd.training.checkpoints.manifest.FORMAT", 2)
        store.save("1", weights(), {})
    for act in (store.names, lambda: store.content("1"), lambda: store.save("2", {}, {})):
        with pytest.raises(ValueError, match="1 in .* has format 2, and this version of pdmd"):
            act()
    assert (tmp_path / "1" / "manifest.json").is_file()


# --- pickles that index anything but tensors of their checkpoint


def rewritten(folder, data):
    """Replaces a checkpoint's metadata and makes the manifest agree with it."""
    (folder / ".metadata").write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    files = {name: FileDigest(**digest) for name, digest in manifest["files"].items()}
    files[".metadata"] = FileDigest.of(data)
    whole = Manifest(manifest["name"], manifest["content"], files)
    (folder / "manifest.json").write_bytes(whole.dumps())


class Named:
    """Pickles as a call of any importable callable."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "evil",
    [
        lambda path: Named(Path.touch, path),
        lambda path: Named(os.system, f"touch {path}"),
        lambda path: Named(eval, f"open({str(path)!r}, 'w')"),
        lambda path: Named(torch.save, {}, path),
        lambda path: [Named(os.mkdir, path)],
        lambda path: {"a": Named(getattr, Path, "touch")},
        lambda path: Named(getattr, TensorProperties, "__init__"),
        lambda path: Named(getattr, _MEM_FORMAT_ENCODING, "mro"),
        lambda path: Named(getattr, _MEM_FORMAT_ENCODING, ["TORCH_CHANNELS_LAST"]),
        lambda path: Named(torch.load, path),
        lambda path: torch.nn.Linear,
        lambda path: BytesStorageMetadata(),
        lambda path: {"state_dict_metadata": {}},
        lambda path: Metadata({"w": BytesStorageMetadata()}, storage_data={}),
        lambda path: Metadata({}, storage_data={}, planner_data=Named(os.mkdir, path)),
    ],
)
def test_a_pickle_of_anything_else_runs_nothing(tmp_path, evil):
    store = Store(tmp_path / "store")
    store.save("1", weights(), {})
    rewritten(tmp_path / "store" / "1", pickle.dumps(evil(tmp_path / "exploited")))
    with pytest.raises(DamagedCheckpoint, match=".metadata is no index of") as caught:
        store.load("1", weights())
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert not (tmp_path / "exploited").exists()


class OldPickler(pickle.Pickler):
    """Pickles members of enumerations as Python 3.11.2 does."""

    def reducer_override(self, value):
        if isinstance(value, enum.Enum):
            return getattr, (type(value), value.name)
        return NotImplemented


def test_checkpoints_of_other_python_versions_are_read(tmp_path):
    store = Store(tmp_path)
    store.save("1", weights(), {})
    metadata = pickle.loads((tmp_path / "1" / ".metadata").read_bytes())
    OldPickler(data := io.BytesIO()).dump(metadata)
    assert b"getattr" in data.getvalue()
    rewritten(tmp_path / "1", data.getvalue())
    check_loads(store, "1", weights())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"relative_path": "../../secret"}, "no file of its manifest"),
        ({"relative_path": "/etc/passwd"}, "no file of its manifest"),
        ({"relative_path": ".pdmd"}, "no file of its manifest"),
        ({"offset": -1}, "beyond the end of"),
        ({"length": 1 << 60}, "beyond the end of"),
        ({"transform_descriptors": ["stream.zstd"]}, "beyond the end of"),
        ({"offset": "0"}, "no index of this checkpoint's tensors"),
    ],
)
def test_tensors_lie_within_files_of_the_manifest(tmp_path, change, told):
    store = Store(tmp_path)
    store.save("1", weights(), {})
    metadata = pickle.loads((tmp_path / "1" / ".metadata").read_bytes())
    place = next(iter(metadata.storage_data.values()))
    for name, value in change.items():
        setattr(place, name, value)
    rewritten(tmp_path / "1", pickle.dumps(metadata))
    with pytest.raises(DamagedCheckpoint, match=told):
        store.load("1", weights())


def test_random_damage_of_the_metadata_ends_in_one_line(tmp_path):
    store, rng = Store(tmp_path), random.Random(0)
    store.save("1", weights(), {})
    good, caught = (tmp_path / "1" / ".metadata").read_bytes(), 0
    for _ in range(200):
        data = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.3:
            data = data[: rng.randrange(len(data))]
        rewritten(tmp_path / "1", bytes(data))
        try:
            store.load("1", weights())
        except (ValueError, OSError) as error:
            caught += 1
            assert "\n" not in str(error) and len(str(error)) < 900
    assert caught > 100


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
    ],
)
def test_a_manifest_of_anything_else_is_damage(tmp_path, text):
    store = Store(tmp_path)
    store.save("1", weights(), {})
    (tmp_path / "1" / "manifest.json").write_bytes(text)
    with pytest.raises(DamagedCheckpoint, match="manifest.json is not a manifest"):
        store.verify("1")


@pytest.mark.parametrize(
    "body",
    [
        {"files": {}},
        {"files": {".metadata": {"size": "1", "sha256": "a"}}},
        {"files": {"../x": {"size": 1, "sha256": "a"}}},
        {"files": []},
        {"files": {".metadata": 3}},
        {"content": 3},
        {"name": ["1"]},
        {"format": None},
    ],
)
def test_a_manifest_of_other_values_is_rejected_in_one_line(tmp_path, body):
    store = Store(tmp_path)
    store.save("1", weights(), {})
    manifest = json.loads((tmp_path / "1" / "manifest.json").read_text())
    manifest.pop("sha256")
    manifest |= body
    text = json.dumps({**manifest, "sha256": own_digest(manifest)})
    (tmp_path / "1" / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match="manifest.json is|has format None") as caught:
        store.verify("1")
    assert "\n" not in str(caught.value)
