import os
import pickle

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from pdmd.training.checkpoints.store import DamagedCheckpoint, Store
from tests.helpers.faults import faults

pytestmark = pytest.mark.distributed


def run_ranks(function, world, *args):
    mp.spawn(_run, (function, world, args), nprocs=world)


def _run(rank, function, world, args):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{args[0]}/ranks", rank=rank, world_size=world
    )
    function(*args)
    dist.destroy_process_group()


def trained(mesh=None):
    """A network and its optimizer after two steps; sharded, unevenly, if there is a mesh."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
    if mesh is not None:
        fully_shard(network[0], mesh=mesh)
        fully_shard(network, mesh=mesh)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    for _ in range(2):
        network(torch.linspace(-1, 1, 12).reshape(4, 3)).square().mean().backward()
        optimizer.step()
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        for key, value in optimizer.state[parameter].items():
            state[f"optimizer.{name}.{key}"] = value
    return state


def full(tensors):
    return {
        key: (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
        for key, value in tensors.items()
    }


def zeros(tensors):
    return {key: torch.zeros_like(value) for key, value in tensors.items()}


def assert_same(a, b):
    a, b = full(a), full(b)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def assert_agreed(value):
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    assert values == [value] * len(values)


def raised(kind, act):
    with pytest.raises(kind) as caught:
        act()
    return str(caught.value)


def sharded(folder):
    rank, mesh = dist.get_rank(), init_device_mesh("cpu", (2,))
    state = trained(mesh)
    expected = full(state)
    assert sum(isinstance(value, DTensor) for value in state.values()) == 12 < len(state)
    for name, asynchronous in (("1", False), ("2", True)):
        store = Store(f"{folder}/store", asynchronous=asynchronous, keep=9)
        alone = zeros(state)
        store.load("0", alone)  # one process wrote it
        assert_same(alone, trained())
        written = {key: value.clone() for key, value in state.items()}
        store.save(name, written, {"rank": rank})
        for value in written.values():
            (value.to_local() if isinstance(value, DTensor) else value).zero_()
        for i in range(20):  # training talks while the store writes
            number = torch.tensor(float(i))
            dist.all_reduce(number)
            assert number == 2 * i
        assert store.latest() == name
        store.verify(name)
        assert store.content(name) == {"rank": 0}
        again = zeros(state)
        store.load(name, again)
        assert_same(again, expected)
        other = {  # sharded along another dimension, or not at all
            key: distribute_tensor(torch.zeros_like(value), mesh, [Shard(1)])
            if value.ndim > 1
            else torch.zeros_like(value)
            for key, value in expected.items()
        }
        store.load(name, other)
        assert_same(other, expected)
    if rank == 0:
        torch.save(expected, f"{folder}/expected.pt")


def test_what_two_ranks_save_one_loads_and_back(tmp_path):
    store = Store(tmp_path / "store", keep=9)
    store.save("0", trained(), {})
    run_ranks(sharded, 2, str(tmp_path))
    assert store.names() == ["0", "1", "2"]
    expected = torch.load(tmp_path / "expected.pt")
    for name in "12":
        loaded = zeros(expected)
        store.load(name, loaded)
        assert_same(loaded, expected)
        store.verify(name)


def cut(operation):
    if operation.startswith("write") and "distcp" in operation:
        raise ConnectionError("the cable is out")


def together(folder):
    rank = dist.get_rank()
    store = Store(f"faulty://{folder}/store", keep=9)
    mesh = init_device_mesh("cpu", (2,))

    # What is the same on all ranks is stored once; what has a rank in its name, by its rank.
    shared = torch.arange(1000.0)
    mine = {f"rng.{rank}": torch.full((16,), rank, dtype=torch.uint8)}
    copies = {
        "plain": shared,
        "replicated": distribute_tensor(shared, mesh, [Replicate()]),
        **mine,
    }
    store.save("1", copies, {})
    with open(f"{folder}/store/1/.metadata", "rb") as file:
        metadata = pickle.load(file)
    assert sorted(index.fqn for index in metadata.storage_data) == [
        "plain",
        "replicated",
        "rng.0",
        "rng.1",
    ]
    loaded = zeros(copies)
    store.load("1", loaded)
    assert_same(loaded, copies)

    # What fails on one rank fails on all, and leaves none waiting.
    assert_agreed(raised(ValueError, lambda: store.save("2", {"w": [shared, 3][rank]}, {})))
    wrong = {**zeros(copies), "plain": torch.zeros(1000 + rank)}
    assert "plain (there float32 [1000]" in raised(ValueError, lambda: store.load("1", wrong))
    assert "not requested: rng.0, rng.1" in raised(
        ValueError, lambda: store.load("1", {"plain": shared, "replicated": copies["replicated"]})
    )
    for failing in (0, 1):
        if rank == failing:
            faults.arm(None, cut)
        told = raised(OSError, lambda: store.save("2", copies, {}))
        faults.arm(None, None)
        assert (
            f"{store.url}: the checkpoint 2 could not be written" in told
            and "the cable is out" in told
        )
        assert_agreed(told)
        assert store.names() == ["1"]
    later = Store(store.url, keep=2, asynchronous=True)
    for failing in (0, 1):
        if rank == failing:
            faults.arm(None, cut)
        later.save("2", copies, {})
        assert "the cable is out" in raised(OSError, later.wait)
        faults.arm(None, None)
    for name in "234":
        later.save(name, copies, {})
    assert later.names() == ["3", "4"]
    later.verify("4")

    # Damage is found by whoever reads the file, and told to all.
    if rank == 0:
        os.truncate(f"{folder}/store/4/__1_0.distcp", 100)
    told = raised(DamagedCheckpoint, lambda: later.verify("4"))
    assert "__1_0.distcp is truncated to 100 of" in told and "is whole is 3" in told
    assert_agreed(told)
    if rank == 0:
        os.remove(f"{folder}/store/4/.metadata")
    assert_agreed(raised(DamagedCheckpoint, lambda: later.load("4", copies)))
    assert_agreed(raised(ValueError, lambda: later.content("9")))

    # Memory is not shared; a group may be fewer than all.
    assert "rank 1 does not see what rank 0 wrote" in raised(
        ValueError, lambda: Store("memory://x")
    )
    group = dist.new_group([1])
    if rank == 1:
        single = Store(f"{folder}/single", process_group=group)
        single.save("1", mine, {})
        single.load("1", mine)
        assert single.names() == ["1"]
    dist.barrier()


def killed(folder):
    store = Store(f"faulty://{folder}/store", keep=1)
    store.save("1", {"w": torch.ones(2), "v": torch.ones(3)}, {})
    if dist.get_rank() == 1:
        faults.arm(None, lambda operation: "distcp" in operation and os._exit(9))
    store.save("2", {"w": torch.ones(2), "v": torch.ones(3)}, {})


def test_a_rank_that_is_killed_leaves_the_checkpoint_before(tmp_path):
    with pytest.raises(mp.ProcessExitedException, match="exit code 9|terminated with signal"):
        run_ranks(killed, 2, str(tmp_path))
    store = Store(tmp_path / "store", keep=1)
    assert store.names() == ["1"]
    store.verify("1")
    assert (tmp_path / "store" / "2").is_dir()
    store.save("3", {"w": torch.ones(2)}, {})
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["3"]


def test_ranks_act_together(tmp_path):
    run_ranks(together, 2, str(tmp_path))
