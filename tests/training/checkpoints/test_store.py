"""Stores: what comes back, what is kept, and places that will not do."""

import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdmd.training.checkpoints.storage import DigestingStream
from pdmd.training.checkpoints.store import Store
from tests.helpers.checkpoints import (
    check_loads,
    fail,
    random_bits,
    weights,
)
from tests.helpers.faults import faults

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.complex64,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.float8_e4m3fn,
]


@pytest.fixture(autouse=True)
def no_faults():
    yield
    faults.arm(None, None)


@st.composite
def tensors(draw):
    found = {}
    names = st.text("abc.0123_-/ é", min_size=1, max_size=12)
    for name in draw(st.lists(names, unique=True, max_size=5)):
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        value = random_bits(draw(st.sampled_from(DTYPES)), shape, draw(st.integers(0, 2**31)))
        layout = draw(st.sampled_from(["plain", "transposed", "sliced", "parameter"]))
        if layout == "transposed":
            value = value.movedim(0, -1) if value.ndim else value
        if layout == "sliced":
            value = value[..., ::2] if value.ndim else value
        if layout == "parameter" and value.is_floating_point():
            value = torch.nn.Parameter(value)
        found[name] = value
    return found


@settings(max_examples=25)
@given(tensors(), st.booleans())
def test_tensors_come_back_bit_for_bit(tensors, asynchronous):
    store = Store("memory://store/bits", asynchronous=asynchronous)
    store.clear()
    store.save("1", tensors, {})
    check_loads(store, "1", tensors)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
)
@settings(max_examples=25)
def test_content_comes_back(value):
    store = Store("memory://store/content")
    store.clear()
    store.save("1", {}, {"value": value})
    assert store.content("1") == {"value": value}


@pytest.mark.parametrize("form", [str, Path, lambda path: f"file://{path}"])
def test_a_path_of_any_form(tmp_path, form):
    Store(form(tmp_path / "deep" / "store")).save("1", weights(), {})
    check_loads(Store(tmp_path / "deep" / "store"), "1", weights())


def test_a_relative_path_stays_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = Store("store")
    monkeypatch.chdir("/")
    store.save("1", weights(), {})
    assert (tmp_path / "store" / "1" / "manifest.json").is_file()


def test_the_manifest_tells_every_file_as_it_lies_on_disk(tmp_path):
    big = {f"w{i}": torch.randn(300, 300 + i) for i in range(20)}
    Store(tmp_path).save("1", {**weights(), **big}, {})
    files = json.loads((tmp_path / "1" / "manifest.json").read_text())["files"]
    assert {*files, "manifest.json", ".pdmd"} == {p.name for p in (tmp_path / "1").iterdir()}
    for name, digest in files.items():
        data = (tmp_path / "1" / name).read_bytes()
        assert digest == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_a_file_being_written_cannot_be_rewound():
    stream = DigestingStream(io.BytesIO())
    stream.write(b"abc")
    with pytest.raises(io.UnsupportedOperation):
        stream.seek(0)
    assert stream.tell() == stream.digest.size == 3


def test_the_newest_are_kept(tmp_path):
    store = Store(tmp_path, keep=2)
    assert store.names() == [] and store.latest() is None
    for i in range(5):
        store.save(f"{i:03d}", weights(i), {"i": i})
        assert store.names() == [f"{j:03d}" for j in range(max(0, i - 1), i + 1)]
        assert store.latest() == f"{i:03d}"
        assert sorted(p.name for p in tmp_path.iterdir()) == store.names()
    for i in (3, 4):
        check_loads(store, f"{i:03d}", weights(i))
        assert store.content(f"{i:03d}") == {"i": i}
    store.clear()
    assert list(tmp_path.iterdir()) == [] and store.names() == []


def test_what_is_not_a_checkpoint_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "000").mkdir()
    (tmp_path / "000" / ".metadata").write_text("another's")
    (tmp_path / "000" / "manifest.json").write_text("{}")
    store = Store(tmp_path, keep=1)
    store.save("001", weights(), {})
    subprocess.run(["cp", "-r", tmp_path / "001", tmp_path / "zzz"], check=True)
    store.save("002", weights(), {})
    assert store.names() == ["002"]
    with pytest.raises(ValueError, match="zzz .*manifest.json is that of 001"):
        store.verify("zzz")
    store.clear()
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == {
        "notes.txt",
        *(p.name for p in (tmp_path / "zzz").iterdir()),
    }
    with pytest.raises(ValueError, match="has a folder 000 that is not a checkpoint"):
        store.save("000", weights(), {})


def test_a_name_must_sort_after_those_before(tmp_path):
    store = Store(tmp_path)
    store.save("010", weights(), {})
    for name in ("010", "009"):
        with pytest.raises(ValueError, match=f"{name} doesn't come after 010, the newest in"):
            store.save(name, weights(), {})
    for name in ("", "../x", "a/b", ".x"):
        with pytest.raises(ValueError, match="name is letters, digits"):
            store.save(name, weights(), {})
    assert store.names() == ["010"]


def test_what_cannot_be_saved_is_refused(tmp_path):
    store = Store(tmp_path)
    for bad, match in (
        ({"step": 3}, "'step' is int; what is not a tensor goes into the content"),
        ({"w": torch.empty(2, device="meta")}, "'w' is on the meta device"),
    ):
        with pytest.raises(ValueError, match=match):
            store.save("1", bad, {})
    with pytest.raises(ValueError, match="content of the checkpoint 1 is not JSON"):
        store.save("1", {}, {"w": torch.ones(2)})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="keeps 1 or more checkpoints, got keep = 0"):
        Store(tmp_path, keep=0)


def test_tensors_that_do_not_fit_are_named(tmp_path):
    store = Store(tmp_path)
    store.save("1", weights(), {})
    wrong = {key: torch.zeros_like(value) for key, value in weights().items()}
    del wrong["rng"]
    wrong["extra"] = torch.zeros(1)
    wrong["network.weight"] = torch.zeros(5, 8)
    wrong["network.half"] = torch.zeros(3)
    with pytest.raises(ValueError) as caught:
        store.load("1", wrong)
    message = str(caught.value)
    assert "not in the checkpoint: extra;" in message
    assert "not requested: rng;" in message
    assert "network.weight (there float32 [8, 5], here float32 [5, 8])" in message
    assert "network.half (there bfloat16 [3], here float32 [3])" in message
    assert all(not value.any() for value in wrong.values())
    with pytest.raises(ValueError, match="w0, w1, w2 and 7 more"):
        store.load("1", {f"w{i}": torch.zeros(1) for i in range(10)})
    with pytest.raises(ValueError, match=r"no checkpoint '2' in .*; there are \['1'\]"):
        store.load("2", wrong)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("nowhere://x", "nowhere://x is on an unknown file system .*give a path, or a URL"),
        ("/proc/nobody/store", "checkpoints can't be kept in /proc/nobody/store .*give a folder"),
        (f"{__file__}/store", "NotADirectoryError"),
    ],
)
def test_a_place_that_will_not_do_is_refused_at_once(url, told):
    with pytest.raises(ValueError, match=told) as caught:
        Store(url)
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(ValueError, match=r"needs a package .*s3fs.*pip install 'pdmd\[s3\]'"):
        Store("s3://bucket/run")


def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path):
    faults.arm(None, fail)
    with pytest.raises(ValueError, match="can't be kept in faulty.*no space left"):
        Store(f"faulty://{tmp_path}")
    faults.arm(None, None)
    Store(f"faulty://{tmp_path}")
    assert list(tmp_path.iterdir()) == []


def test_importing_the_store_is_light():
    code = (
        "import sys, pdmd.training.checkpoints.store; "
        "print([m for m in ('torch.distributed.checkpoint', "
        "'s3fs', 'torchtitan') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        check=True,
    )
    assert done.stdout.strip() == "[]"
