"""Fake scores of several networks in training: updates of one at a time, and exact resumption."""

import pytest
import torch

from pdmd import FromDenoiser, IntervalRouter, MlpDenoiser, RoutedDenoiser
from pdmd.distributed.optimization import LocalOptimization
from pdmd.distributed.runtime import OneProcess
from pdmd.training.checkpoints.checkpointer import Checkpointer, Interrupted
from tests.helpers.small_runs import StopAt, small, weights


class Watched(LocalOptimization):
    """Records which parameters, and which moments, every step of an optimizer changes."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def step(self, optimizers, finite):
        (optimizer,) = optimizers
        parameters = optimizer.param_groups[0]["params"]

        def state():
            moments = [
                optimizer.state.get(p, {}).get("exp_avg", torch.zeros(())) for p in parameters
            ]
            return [
                (p.detach().clone(), m.clone()) for p, m in zip(parameters, moments, strict=True)
            ]

        before = state()
        super().step(optimizers, finite)
        changed = [
            tuple(not torch.equal(x, y) for x, y in zip(old, new, strict=True))
            for old, new in zip(before, state(), strict=True)
        ]
        self.steps.append((changed, [p.grad is not None for p in parameters]))


def routed(**changes):
    torch.manual_seed(0)
    parts = [MlpDenoiser.rectified_flow(dim=2, classes=2, width=8) for _ in range(2)]
    network = RoutedDenoiser(parts, IntervalRouter([1, 0.75, 0]))
    settings = dict(init=FromDenoiser(network), updates=4, fake_updates=2)
    return small(**{**settings, **changes})


def test_a_step_leaves_the_weights_and_moments_of_the_other_network_alone():
    runtime = OneProcess()
    runtime.optimization = Watched()
    routed(runtime=runtime)
    seen = set()
    for changed, gradients in runtime.optimization.steps:
        assert changed == [(has, has) for has in gradients]
        half = len(gradients) // 2
        seen.add((any(gradients[:half]), any(gradients[half:])))
    assert seen == {(True, False), (False, True)}


@pytest.mark.parametrize("after", [1, 6])
def test_a_run_that_resumes_equals_one_without_interruption(tmp_path, after):
    straight = weights(routed())
    checkpointer = Checkpointer(tmp_path / "checkpoint")
    with pytest.raises(Interrupted):
        routed(checkpointer=checkpointer, recorder=StopAt(checkpointer, after))
    checkpointer.stop_requested = False
    assert torch.equal(weights(routed(checkpointer=checkpointer, resume=True)), straight)
