"""Stores under kills, failing writes and interruptions, in the foreground and background."""

import os
import threading

import pytest
import torch

from pdmd.training.checkpoints.store import Store
from tests.helpers.checkpoints import check_loads, fail, one, weights
from tests.helpers.faults import faults


@pytest.fixture(autouse=True)
def no_faults():
    yield
    faults.arm(None, None)


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
