"""Offload: the same bits, wherever frozen networks, averages and moments are kept."""

import pytest
import torch
from torch.distributed.fsdp import FSDPModule

from pdmd import AdamRecipe, PhasePlan
from pdmd.cli.parallel_config import ParallelConfig
from pdmd.distillation.adapters import LowRank
from pdmd.distillation.initializers import LowRankRoles
from pdmd.distributed.offload import Offload
from pdmd.distributed.runtime import OneProcess
from pdmd.training.streamed_adam import StreamedAdam
from pdmd.training.trainer import PhaseTrainer
from tests.distributed.ranks import run_ranks
from tests.distributed.test_titan import digits
from tests.helpers.distilling import distill

EVERYTHING = Offload(teacher=True, experts=True, averages=True, optimizers=True)
pytestmark = pytest.mark.distributed


def offloaded(network):
    """Returns whether the parameters of every sharded module are offloaded, by module."""
    found = set()
    for module in network.modules():
        if isinstance(module, FSDPModule):
            group = module._get_fsdp_state()._fsdp_param_group
            if group is not None:
                found |= {parameter.offload_to_cpu for parameter in group.fsdp_params}
    return found


def trained(offload, init=None):
    """Distills, and says what was offloaded in the last phase."""
    from pdmd.distributed.titan import TitanRuntime

    seen = {}
    cycle = PhaseTrainer.cycle

    def look(self):
        scalars = cycle(self)
        bases = [m.base for m in self.networks["generator"].modules() if hasattr(m, "base")]
        seen["teacher"] = offloaded(self.teacher) | set().union(*map(offloaded, bases))
        seen["experts"] = set().union(*(offloaded(e.denoiser) for e in self.earlier))
        seen["averages"] = offloaded(self.ema.network)
        seen["trained"] = offloaded(self.networks["generator"]) | offloaded(self.networks["fake"])
        seen["optimizers"] = {
            isinstance(o, StreamedAdam) and o.offload
            for os in self.optimizers.values()
            for o in os
        }
        return scalars

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PhaseTrainer, "cycle", look)
        student = distill(
            digits(),
            PhasePlan.uniform(2),
            updates=2,
            fake_updates=2,
            batch_size=8,
            init=init,
            optimizer=AdamRecipe(lr=1e-3),
            runtime=TitanRuntime(offload=offload),
        )
    return student.state_dict(), seen


def cases(*offloads):
    return [(offload, init) for offload in offloads for init in (None, ADAPTERS)]


ADAPTERS = LowRankRoles(LowRank(rank=4), LowRank(rank=4), seed=0)


def several(todo):
    return [trained(*case) for case in todo]


def check(results):
    for i in (0, 1):  # full weights, adapters
        (nothing, seen), *rest = results[i::2]
        assert all(found == {False} for found in seen.values()), seen
        expected = (seen.keys() - {"trained"}, {"experts"})
        for (weights, placed), true in zip(rest, expected, strict=True):
            for name in weights:
                torch.testing.assert_close(weights[name], nothing[name], rtol=0, atol=1e-7)
            for role, found in placed.items():
                assert found == {role in true}, (i, role, found)


def test_two_ranks_train_alike_with_everything_or_the_experts_offloaded():
    todo = cases(Offload(), EVERYTHING, Offload(experts=True))
    check(run_ranks(several, 2, todo)[0])


def test_a_single_process_offloads_networks_by_torchtitans_parts():
    assert isinstance(ParallelConfig(offload=("optimizers",)).build(0), OneProcess)
    with pytest.raises(ValueError, match="use TitanRuntime"):
        OneProcess().placement.trained(digits(), offload=True)
