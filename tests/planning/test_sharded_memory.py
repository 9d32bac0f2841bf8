"""The planned memory of one of two ranks equals what it allocates."""

import pytest
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from pdmd import PhasePlan, StochasticTruncation
from pdmd.planning import (
    Degrees,
    PhaseFootprints,
    Precision,
    Workload,
    measure_footprint,
    memory_of,
)
from pdmd.planning.units import units_of
from tests.distributed.ranks import run_ranks
from tests.helpers.peaks import peak_of_last
from tests.helpers.trainings import Images, trainer_of

CASES = {
    "activations": ({"image_size": 16, "width": 96, "depth": 3}, 32),
    "parameters": ({"image_size": 8, "width": 256, "depth": 3}, 4),
}


def work_of(batch):
    return Workload(
        plan=PhasePlan.uniform(2),
        truncation=StochasticTruncation(),
        batch_size=batch,
        fake_updates=1,
    )


def peak(settings, batch):
    """Returns the peak bytes of this rank in its second cycle."""

    def first():
        trainer = trainer_of(
            Images(**settings), work_of(batch), 1, batch_size=batch // 2, seed=dist.get_rank()
        )
        trainer.session.account.close()
        mesh = init_device_mesh("cpu", (2,))
        for network in (
            trainer.teacher,
            *(expert.denoiser for expert in (*trainer.earlier, *trainer.experts)),
            *trainer.fakes[0],
            *trainer._average.values(),
        ):
            for unit in units_of(network).values():
                fully_shard(unit, mesh=mesh)
            fully_shard(network, mesh=mesh)
        trainer.parameters = {
            role: list(network.parameters()) for role, network in trainer.networks.items()
        }
        trainer.optimizers = {
            role: trainer.session.runtime.optimization.optimizers(recipe, trainer.networks[role])
            for role, recipe in trainer.recipes.items()
        }
        trainer.rates = {}  # they refer to the earlier optimizers
        trainer.cycle()
        return trainer

    norm = nn.utils.get_total_norm
    nn.utils.get_total_norm = lambda *args: norm(*args).full_tensor()  # type: ignore[union-attr]
    return peak_of_last(first, lambda trainer: trainer.cycle())


@pytest.mark.distributed
@pytest.mark.parametrize("name", CASES)
def test_a_rank_allocates_the_planned_memory(name):
    settings, batch = CASES[name]
    settings = {"patch_size": 2, "heads": 4, **settings}
    measured = run_ranks(peak, 2, settings, batch)
    network = Images(**settings)
    one = measure_footprint(network, network.encode([1]), train=True)
    roles = PhaseFootprints(teacher=one, generator=one, fake=one, frozen=(one,))
    planned = memory_of(roles, work_of(batch), Degrees(dp_shard=2), Precision())
    assert [planned.total] * 2 == pytest.approx(measured, rel=0.06)
