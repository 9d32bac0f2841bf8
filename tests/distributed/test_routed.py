"""A teacher of two networks on one process and on two ranks: one network for every call."""

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

from pdmd import AdamRecipe, Guided, PhasePlan
from pdmd.distillation.experts import StochasticTruncation
from pdmd.distributed.runtime import OneProcess
from pdmd.objectives import BalancedTimes, DistributionMatching, SubintervalScoreMatching
from pdmd.planning import Workload, cycle_passes
from pdmd.teachers import WanTeacher
from pdmd.training.monitoring.accounting import Account
from pdmd.training.monitoring.recorder import Recorder
from tests.distributed.ranks import run_ranks
from tests.helpers.distilling import distill
from tests.helpers.tiny_families import WAN

pytestmark = pytest.mark.distributed
PLAN = PhasePlan.from_timesteps((1.0, 0.875, 0.0))
ROWS = 2


class Equivalents(Recorder):
    """Counts the forward equivalents of every phase: of the transformers, and by the account."""

    def __init__(self):
        self.account, self.rows, self.starts, self.ends = Account(), 0, [], []
        self.handle = register_module_forward_hook(self.count)

    def count(self, module, args, output):
        if isinstance(module, WanTeacher):
            value = output.value
            self.rows += len(value) * (3 if value.requires_grad and torch.is_grad_enabled() else 1)

    def on_phase_start(self, *arguments):
        self.starts.append((self.rows, self.account.forward_equivalents))

    def on_update(self, update):  # before the calibration at the end of a phase
        self.ends.append((self.rows, self.account.forward_equivalents))

    def phases(self):
        self.handle.remove()
        return [
            tuple(after - before for before, after in zip(start, end, strict=True))
            for start, end in zip(self.starts, self.ends, strict=True)
        ]


def trained(degrees, times):
    """Distills a tiny Wan 2.2 for a cycle a phase; returns counts, losses and weights."""
    from pdmd.distributed.titan import TitanRuntime

    runtime = OneProcess() if degrees is None else TitanRuntime(**degrees)
    recorder, updated = Equivalents(), []
    clip = runtime.optimization.clip_gradients

    def clipped(network, parameters, max_grad_norm):
        norm = clip(network, parameters, max_grad_norm)
        updated.append(
            sorted(
                {
                    name.split(".")[0] + name.split("denoisers.")[-1][:1]
                    for name, p in network.named_parameters()
                    if p.grad is not None
                }
            )
        )
        return norm

    runtime.optimization.clip_gradients = clipped
    teacher = WanTeacher.from_config(**WAN)
    student = distill(
        Guided(teacher, (4.0, 3.0)),
        PLAN,
        updates=1,
        fake_updates=5,
        batch_size=ROWS,
        optimizer=AdamRecipe(lr=1e-4),
        generator_objective=DistributionMatching(times=times),
        fake_objective=SubintervalScoreMatching(times=times),
        recorder=recorder,
        account=recorder.account,
        runtime=runtime,
    )
    return recorder.phases(), updated, runtime.states.full(student)


def test_every_call_evaluates_one_network_on_one_process_and_on_two_ranks():
    times = BalancedTimes()
    counts, updated, weights = trained(None, times)
    work = Workload(
        plan=PLAN,
        truncation=StochasticTruncation(),
        batch_size=ROWS,
        fake_updates=5,
        evaluations=2,
    )
    for index, (rows, account) in enumerate(counts):
        passes = cycle_passes(work, index)
        planned = sum(passes.forward.values()) + 2 * sum(passes.backward.values())
        assert rows == account == ROWS * planned
    fakes = updated[6:11]
    assert len(updated) == 12 and {len(names) for names in fakes} == {1}
    assert len({names[0] for names in fakes}) == 2  # updates of either network alone
    for got, its_updates, its_weights in run_ranks(trained, 2, {}, times):
        # each of two ranks evaluates half of the rows, and counts those of both
        assert [2 * rows for rows, _ in got] == [account for _, account in got]
        assert [account for _, account in got] == [account for _, account in counts]
        assert its_updates == updated
        for name, value in weights.items():
            torch.testing.assert_close(its_weights[name], value, rtol=1e-4, atol=1e-5)


def test_the_second_phase_of_the_released_recipe_takes_47_forward_equivalents():
    """Two steps a phase, guidance, activation checkpointing; both networks would take 69."""
    work = Workload(
        plan=PhasePlan.from_timesteps((1.0, 0.9545, 0.875, 0.7, 0.0), steps=2),
        truncation=StochasticTruncation(),
        batch_size=64,
        fake_updates=5,
        evaluations=2,
        activation_checkpointing=True,
    )
    passes = cycle_passes(work, 1)
    total = sum(passes.forward.values()) + sum(passes.recomputed.values())
    assert total + 2 * sum(passes.backward.values()) == 47
