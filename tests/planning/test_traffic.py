"""The planned memory of one rank of two is what it really holds."""

import gc
import os
import socket
import weakref

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pdmd import PhasePlan, StochasticTruncation
from pdmd.planning import Degrees, Precision, Roles, Work, measure, memory_of
from pdmd.planning.units import units_of
from tests.helpers.trainings import Images, trainer_of

CASES = {
    "activations": ({"image_size": 16, "width": 96, "depth": 3}, 32),
    "parameters": ({"image_size": 8, "width": 256, "depth": 3}, 4),
}


def work_of(batch):
    return Work(
        plan=PhasePlan.uniform(2),
        truncation=StochasticTruncation(),
        batch_size=batch,
        fake_updates=1,
    )


class Live(TorchDispatchMode):
    """Holds the most bytes that storages had at once; sharding empties and refills them."""

    def __init__(self):
        super().__init__()
        self.storages, self.peak = {}, 0

    def now(self):
        sizes = {}
        for reference in list(self.storages.values()):
            storage = reference()
            try:
                sizes[storage.data_ptr()] = storage.nbytes()
            except (AttributeError, RuntimeError):  # it went, or lost its memory
                continue
        return sum(sizes.values())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented  # comes again with the tensors inside
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((out, args, kwargs)):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = id(storage)
                if key not in self.storages:
                    self.storages[key] = weakref.ref(storage)
                    weakref.finalize(storage, self.storages.pop, key, None)
        self.peak = max(self.peak, self.now())
        return out


def run_rank(rank, port, settings, batch, results):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    clip = nn.utils.clip_grad_norm_
    nn.utils.clip_grad_norm_ = lambda *args: clip(*args).full_tensor()  # type: ignore[union-attr]
    mesh, live = init_device_mesh("cpu", (2,)), Live()
    with live:
        trainer = trainer_of(
            Images(**settings), work_of(batch), 1, batch_size=batch // 2, seed=rank
        )
        trainer.session.account.close()
        for network in (
            trainer.teacher,
            *(expert.denoiser for expert in (*trainer.earlier, *trainer.experts)),
            *trainer.fakes[0],
            *trainer._average.values(),
        ):
            for unit in units_of(network).values():
                fully_shard(unit, mesh=mesh)
            fully_shard(network, mesh=mesh)
        trainer.optimizers = {
            role: trainer.session.runtime.optimization.optimizers(recipe, trainer.networks[role])
            for role, recipe in trainer.recipes.items()
        }
        trainer.rates = {}  # of the optimizers before
        trainer.cycle()
        gc.collect()
        live.peak = 0
        trainer.cycle()
    results[rank] = live.peak
    dist.destroy_process_group()


@pytest.mark.distributed
@pytest.mark.parametrize("name", CASES)
def test_a_rank_of_two_holds_what_is_planned(name):
    settings, batch = CASES[name]
    settings = {"patch_size": 2, "heads": 4, **settings}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = multiprocessing.get_context("spawn").Manager().dict()
    multiprocessing.spawn(run_rank, (port, settings, batch, results), nprocs=2)
    network = Images(**settings)
    one = measure(network, network.encode([1]), train=True)
    roles = Roles(teacher=one, generator=one, fake=one, frozen=(one,))
    planned = memory_of(roles, work_of(batch), Degrees(dp_shard=2), Precision())
    for rank in range(2):
        assert planned.total == pytest.approx(results[rank], rel=0.06)
