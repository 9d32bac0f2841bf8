"""Experts of another network than the teacher's: two ranks train as one process does."""

import pytest
import torch

from pdmd import AdamRecipe, PhasePlan
from pdmd.distillation.adapters import LowRank
from pdmd.distillation.initializers import FromNetwork, LowRankRoles
from pdmd.distributed.offload import Offload
from pdmd.distributed.runtime import OneProcess
from pdmd.teachers.packaged.digits import DigitsTeacher
from pdmd.teachers.packaged.transformer import ImageTransformer
from tests.distributed.ranks import run_ranks
from tests.distributed.test_titan import digits, shaken
from tests.helpers.distilling import distill

pytestmark = pytest.mark.distributed


def trained(runtime, adapted):
    torch.manual_seed(1)
    network = DigitsTeacher(shaken(ImageTransformer(width=16, depth=1, heads=2)), std=0.7)
    start = FromNetwork(network)
    init = LowRankRoles(LowRank(rank=2), start=start, seed=0) if adapted else start
    student = distill(
        digits(),
        PhasePlan.uniform(2),
        updates=2,
        fake_updates=1,
        batch_size=8,
        init=init,
        optimizer=AdamRecipe(lr=1e-3),
        runtime=runtime(),
    )
    from pdmd.distributed.full_state_dict import full_tensors
    from pdmd.distributed.weight_sources import gathered

    return {name: gathered(value).cpu() for name, value in full_tensors(student).items()}


def on_ranks():
    from pdmd.distributed.titan import TitanRuntime

    def offloaded():
        return TitanRuntime(offload=Offload(teacher=True))

    return trained(TitanRuntime, False), trained(offloaded, True)


@pytest.mark.slow
def test_two_ranks_train_a_smaller_student_as_one_process_does():
    found = run_ranks(on_ranks, 2)[0]
    for adapted, weights in enumerate(found):
        expected = trained(OneProcess, bool(adapted))
        assert weights.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-5)
