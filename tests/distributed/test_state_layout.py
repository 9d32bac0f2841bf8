"""State layouts in one process: optimizer states by parameter name, saved and loaded."""

import torch

from pdmd import AdamRecipe
from pdmd.distributed.optimization import LocalOptimization
from pdmd.distributed.state_layout import LocalStates, parameter_names


def stepped(steps, states=None, network=None):
    torch.manual_seed(0)
    network = network or torch.nn.Linear(3, 2)
    optimizers = LocalOptimization().optimizers(AdamRecipe(lr=0.1), network)
    if states is not None:
        LocalStates().load_moments(network, optimizers, states)
    for _ in range(steps):
        network(torch.ones(1, 3)).square().sum().backward()
        optimizers.step()
        optimizers.zero_grad()
    return network, optimizers


def test_an_optimizer_resumes_from_its_moments_to_the_same_bits():
    whole, _ = stepped(4)
    half, optimizers = stepped(2)
    moments = LocalStates().moments(half, optimizers)
    assert moments.keys() == {"weight", "bias"}
    resumed, _ = stepped(2, moments, half)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_blank_moments_have_the_layout_of_those_after_a_step():
    network, optimizers = stepped(1)
    states = LocalStates()
    filled = states.moments(network, optimizers)
    blank = states.blank_moments(network, optimizers)
    assert {n: {k: v.shape for k, v in s.items()} for n, s in filled.items()} == {
        n: {k: v.shape for k, v in s.items()} for n, s in blank.items()
    }
    assert not any(value.any() for state in blank.values() for value in state.values())


def test_names_do_not_contain_wrappers():
    network = torch.nn.Sequential()
    network.add_module("_checkpoint_wrapped_module", torch.nn.Linear(1, 1))
    assert set(parameter_names(network).values()) == {"weight", "bias"}
