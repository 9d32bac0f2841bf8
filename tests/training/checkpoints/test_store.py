import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import fsspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdmd.training.checkpoints.manifest import Manifest
from pdmd.training.checkpoints.storage import DigestingStream
from pdmd.training.checkpoints.store import DamagedCheckpoint, Store
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


def random_bits(dtype, shape, seed):
    """Any bits at all: NaNs with a payload, denormals, negative zeros."""
    high = 2 if dtype is torch.bool else 256
    size = torch.empty(0, dtype=dtype).element_size()
    bits = torch.randint(
        high, (*shape, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    return bits.view(dtype).reshape(shape)


def same_bits(a, b):
    def bits(value):
        return (
            value.detach()
            .clone(memory_format=torch.contiguous_format)
            .reshape(-1)
            .view(torch.uint8)
        )

    return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(bits(a), bits(b))


def weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "network.weight": torch.randn(8, 5, generator=generator),
        "network.half": torch.randn(3, generator=generator).bfloat16(),
        "optimizer.step": torch.tensor(7 + seed),
        "rng": generator.get_state(),
        "nothing": torch.empty(0, 4),
    }


def check_loads(store, name, tensors):
    store.verify(name)
    loaded = {key: torch.zeros_like(value) for key, value in tensors.items()}
    before = {key: value.data_ptr() for key, value in loaded.items()}
    store.load(name, loaded)
    assert {key: value.data_ptr() for key, value in loaded.items()} == before
    assert all(same_bits(tensors[key], loaded[key]) for key in tensors)


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
    assert "not asked for: rng;" in message
    assert "network.weight (there float32 [8, 5], here float32 [5, 8])" in message
    assert "network.half (there bfloat16 [3], here float32 [3])" in message
    assert all(not value.any() for value in wrong.values())
    with pytest.raises(ValueError, match="w0, w1, w2 and 7 more"):
        store.load("1", {f"w{i}": torch.zeros(1) for i in range(10)})
    with pytest.raises(ValueError, match=r"no checkpoint '2' in .*; there are \['1'\]"):
        store.load("2", wrong)


# --- interruptions


def one(seed):
    return {"w": torch.full((2,), float(seed))}


def tree(path):
    return sorted(str(p.relative_to(path)) for p in path.rglob("*"))


@pytest.fixture
def unsynced(monkeypatch):
    """Spares the disk: what a process wrote outlives it without a sync."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def killed_at(n, act):
    """Acts in a process that dies, with all it has not flushed, at the n-th file operation."""
    child = os.fork()
    if child == 0:
        try:
            faults.arm(n, lambda operation: os._exit(9))
            act()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 9


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path, unsynced):
    seen, bare, n = set(), 0, 0
    dead = True
    while dead:
        n += 1
        path = tmp_path / f"{n}"
        store = Store(f"faulty://{path}", keep=1)
        store.save("1", one(1), {"i": 1})
        dead = killed_at(n, lambda store=store: store.save("2", one(2), {"i": 2}))
        store = Store(f"faulty://{path}", keep=1)
        latest = store.latest()
        seen.add((latest, tuple(store.names())))
        assert latest in ("1", "2") and (dead or store.names() == ["2"])
        for name in store.names():
            check_loads(store, name, one(int(name)))
            assert store.content(name) == {"i": int(name)}
        store.save("3", one(3), {})
        check_loads(store, "3", one(3))
        left = [file for file in tree(path) if file != "3" and not file.startswith("3/")]
        assert left in ([], ["2"])
        bare += left == ["2"]  # killed before its mark was made: an empty folder is left
    assert n > 20 and bare == 1
    assert seen == {("1", ("1",)), ("2", ("1", "2")), ("2", ("2",))}


def fail(operation):
    raise OSError(f"no space left for {operation.split()[0]}")


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_write_that_fails_anywhere_is_told_and_can_be_tried_again(
    tmp_path, unsynced, asynchronous
):
    url, n = f"faulty://{tmp_path}", 0
    store = Store(url, keep=2, asynchronous=asynchronous)
    store.save("000", one(0), {})
    store.wait()
    failed = True
    last = "000"
    while failed:
        n += 1
        name = f"{n:03d}"
        failed = False
        faults.arm(n, fail)
        try:
            store.save(name, one(n), {})
            store.wait()
        except OSError as error:
            failed = True
            assert url in str(error) and "no space left for" in str(error)
            assert f"the checkpoint {name} could not be written" in str(error) or (
                "older checkpoints could not be removed" in str(error)
            )
            store.wait()
        faults.arm(None, None)
        names = store.names()
        assert {last} < {*names} | {name} and names[-1] in (last, name)
        for each in names:
            check_loads(store, each, one(int(each[:3])))
        if names[-1] != name:
            store.save(name, one(n), {})
            check_loads(store, name, one(n))
        last = name
    assert n > 20


def test_an_interruption_stays_one(tmp_path):
    store = Store(f"faulty://{tmp_path}")

    def interrupt(operation):
        if "distcp" in operation:
            raise KeyboardInterrupt

    faults.arm(None, interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.save("1", weights(), {})
    faults.arm(None, None)
    assert store.names() == []
    store.save("1", weights(), {})
    check_loads(store, "1", weights())


# --- damage


def truncate(path):
    path.write_bytes(path.read_bytes()[:-5])


def extend(path):
    path.write_bytes(path.read_bytes() + b"x")


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


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


# --- in the background


def test_weights_may_change_while_they_are_written(tmp_path):
    store = Store(f"faulty://{tmp_path}", asynchronous=True)
    gate = threading.Event()

    def hold(operation):
        if "distcp" in operation:
            assert gate.wait(20)

    faults.arm(None, hold)
    values = {**weights(), "parameter": torch.nn.Parameter(torch.randn(4, 4))}
    before = {key: value.detach().clone() for key, value in values.items()}
    store.save("1", values, {})
    assert not (tmp_path / "1" / "manifest.json").exists()  # still under way
    with torch.no_grad():
        for value in values.values():
            value.zero_()
    threading.Timer(0.05, gate.set).start()
    store.save("2", values, {})  # waits for the first
    assert (tmp_path / "1" / "manifest.json").exists()
    assert store.names() == ["1", "2"]
    check_loads(store, "1", before)
    check_loads(store, "2", {key: torch.zeros_like(value) for key, value in before.items()})


@pytest.mark.parametrize("where", ["save", "wait"])
def test_an_error_in_the_background_surfaces_once(tmp_path, where):
    store = Store(f"faulty://{tmp_path}", asynchronous=True)
    store.save("1", weights(1), {})
    store.wait()

    def strike(operation):
        if "2/manifest" in operation:
            raise RuntimeError("the cable is out")

    faults.arm(None, strike)
    store.save("2", weights(2), {})
    assert store.names() == ["1"]
    with pytest.raises(OSError, match="faulty.*: the checkpoint 2 could not .*the cable is"):
        store.wait() if where == "wait" else store.save("3", weights(3), {})
    faults.arm(None, None)
    store.wait()
    assert store.names() == ["1"]
    check_loads(store, "1", weights(1))
    store.save("3", weights(3), {})
    assert store.names() == ["1", "3"]
    assert not (tmp_path / "2").exists()


# --- places that won't do


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
