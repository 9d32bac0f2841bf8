import copy

import pytest
import torch

from pdmd.training.fused_adam import FusedAdam

SETTINGS = dict(lr=0.1, betas=(0.5, 0.9), weight_decay=0.1)


def networks():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2))
    return network, copy.deepcopy(network)


def test_steps_are_those_of_torch_bit_for_bit():
    own, other = networks()
    optimizers = [
        (own, FusedAdam(own.parameters(), **SETTINGS)),
        (other, torch.optim.AdamW(other.parameters(), **SETTINGS, fused=True)),
    ]
    for i in range(4):
        gradients = [torch.randn(p.shape) for p in own.parameters()]
        for network, optimizer in optimizers:
            for p, gradient in zip(network.parameters(), gradients, strict=True):
                p.grad = gradient.clone()
            if i == 1:
                network[1].weight.grad = None
            if i == 2:
                optimizer.found_inf = torch.ones(())
            optimizer.step()
            optimizer.__dict__.pop("found_inf", None)
    states = [[optimizer.state[p] for p in net.parameters()] for net, optimizer in optimizers]
    assert [float(state["step"]) for state in states[0]] == [3, 3, 2, 3]
    for a, b in zip(*states, strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    for a, b in zip(own.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_parameters_of_two_types_are_rejected():
    parameters = [torch.nn.Parameter(torch.zeros(2, dtype=d)) for d in (torch.half, torch.float)]
    with pytest.raises(ValueError, match="one type on one device.*float16.*float32.*AdamW"):
        FusedAdam(parameters, **SETTINGS)
