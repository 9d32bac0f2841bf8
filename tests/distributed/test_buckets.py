"""Samples of several sizes on two ranks."""

import pytest
import torch

from pdmd import AdamRecipe, FakeScoreTraining, PhasePlan, Rollouts, Session, distill
from pdmd.distributed.runtime import OneProcess
from pdmd.training.expert_training import ExpertTraining
from tests.distributed.ranks import run_ranks
from tests.helpers.sizes import SIZES, AnySize


def trained(degrees):
    from pdmd.distributed.titan import TitanRuntime

    runtime = OneProcess() if degrees is None else TitanRuntime(**degrees)
    student = distill(
        AnySize(),
        PhasePlan.uniform(1, steps=2),
        updates=4,
        experts=ExpertTraining(optimizer=AdamRecipe(lr=1e-3)),
        fake_scores=FakeScoreTraining(updates=1),
        rollouts=Rollouts(batch_size=4, buckets=SIZES),
        session=Session(runtime=runtime),
        check_score=False,
        progress=False,
    )
    return runtime.states.full(student)


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_train_on_the_sizes_of_one_process():
    alone, (shared, _) = trained(None), run_ranks(trained, 2, {"dp_shard": 2})
    assert alone.keys() == shared.keys() and len(alone) == 1
    for name, value in alone.items():
        assert not torch.equal(value, torch.ones(2))
        torch.testing.assert_close(shared[name], value, rtol=1e-5, atol=1e-7)
