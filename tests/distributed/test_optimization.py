"""Optimization in one process: skipped steps and clipped gradients."""

import pytest
import torch

from pdmd import AdamRecipe
from pdmd.distributed.optimization import LocalOptimization


def network_with_gradient(value):
    network = torch.nn.Linear(2, 1)
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, value)
    return network


@pytest.mark.parametrize("finite", [True, False])
def test_a_step_is_applied_only_if_finite(finite):
    optimization, network = LocalOptimization(), network_with_gradient(1.0)
    optimizers = optimization.optimizers(AdamRecipe(lr=0.1), network)
    before = [p.detach().clone() for p in network.parameters()]
    optimization.step(optimizers, torch.tensor(finite))
    for old, new in zip(before, network.parameters(), strict=True):
        expected = old - 0.1 if finite else old  # Adam's first step has length lr
        torch.testing.assert_close(new.detach(), expected, rtol=0, atol=1e-5)


def test_gradients_are_clipped_to_the_norm_and_the_old_norm_is_returned():
    network = network_with_gradient(4.0)
    norm = LocalOptimization().clip_gradients(network, [*network.parameters()], 2.0)
    assert float(norm) == pytest.approx(4.0 * 3**0.5)
    clipped = torch.cat([p.grad.flatten() for p in network.parameters()]).norm()
    assert float(clipped) == pytest.approx(2.0, rel=1e-5)
