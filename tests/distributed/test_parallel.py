"""Gradients between split networks, of first and second order."""

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pdmd.distributed import (
    context_parallelize,
    permutations,
    plans_of,
    replicate,
    tensor_parallelize,
)
from tests.distributed.networks import Network
from tests.distributed.parity import distribute, full, make_mesh, relative
from tests.distributed.ranks import run_ranks
from tests.helpers.splitting import double, tokens

pytestmark = pytest.mark.distributed


class Framed(nn.Module):
    """Parameters before and after the network that states the plan."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.randn(3))
        self.inner = Network()
        self.last = nn.Linear(3, 3)

    def forward(self, x):
        return self.last(self.inner(self.gain * x).tanh())


def value_of(networks, x):
    return networks[0](x).square().mean()


def chain_of(networks, x):
    """Two steps of one network, then a frozen one: as rollouts and objectives compose."""
    (network, frozen) = networks
    x = x + network(x)
    x = x - 0.5 * network(x)
    return (x * frozen(x)).mean()


def penalty_of(networks, x):
    """The critic's penalty, which differentiates the derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        value = networks[0](x).square().sum()
    (slope,) = torch.autograd.grad(value, x, create_graph=True)
    return slope.square().mean()


def critic_of(networks, x):
    return networks[1](networks[0](x) + x).square().mean()


CASES = {
    "value": (value_of, (Network,)),
    "framed": (value_of, (Framed,)),
    "chain": (chain_of, (Network, Network)),
    "penalty": (penalty_of, (Network,)),
    "critic": (critic_of, (Network, lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)))),
}


def measure(degrees):
    """Returns every relative error of every case, for (context, tensor) degrees."""
    return {(d, name): _measure_case(name, *d) for d in degrees for name in CASES}


def _measure_case(name, context, tensor):
    mesh = make_mesh(1, context, tensor)
    loss_of, makers = CASES[name]
    found, kept = {}, []
    for split in (False, True):
        networks = [double(make) for make in makers]
        if name == "chain":
            networks[1].requires_grad_(False)
        for network in networks if split else ():
            splits = {"tp": tensor_parallelize, "cp": context_parallelize}
            for axis in ("tp", "cp"):
                if mesh[axis].size() > 1:
                    change = splits[axis] if plans_of(network) else replicate
                    change(network, mesh[axis])
        x = tokens().requires_grad_()
        loss = loss_of(networks, x)
        loss.backward()
        gradients = {"loss": loss.detach(), "x": x.grad}
        for i, network in enumerate(networks):
            permuted = permutations(network)
            for key, parameter in network.named_parameters():
                assert isinstance(parameter, DTensor) == (split and tensor > 1), key
                if parameter.grad is None:
                    continue
                gradient = full(key, parameter.grad, permuted)
                if split and context > 1:
                    torch.distributed.all_reduce(gradient, group=mesh["cp"].get_group())
                gradients[f"{i}.{key}"] = gradient
        kept.append(gradients)
    assert kept[0].keys() == kept[1].keys()
    for key, gradient in kept[0].items():
        found[key] = relative(kept[1][key], gradient)
    return found


def test_gradients_flow_through_networks_to_any_order():
    for found in run_ranks(measure, 2, [(1, 2), (2, 1)]):
        assert len(found) == 2 * len(CASES)
        for case, one in found.items():
            assert max(one.values()) < 1e-10, (case, one)


@pytest.mark.slow
def test_gradients_flow_through_networks_split_both_ways():
    for found in run_ranks(measure, 4, [(2, 2)]):
        for case, one in found.items():
            assert max(one.values()) < 1e-10, (case, one)


def sharded():
    """Parameters outside a plan, with data and context parallel ranks that average gradients."""
    mesh = make_mesh(data=2, context=2)
    alone, split = double(Framed), double(Framed)
    value_of([alone], tokens()).backward()
    distribute(split, mesh)
    own = tokens().chunk(2)[mesh["dp"].get_local_rank()]
    (mesh["cp"].size() * value_of([split], own)).backward()
    expected = dict(alone.named_parameters())
    return {
        name: relative(parameter.grad.full_tensor(), expected[name].grad)
        for name, parameter in split.named_parameters()
    }


@pytest.mark.slow
def test_one_rule_scales_every_gradient():
    for one in run_ranks(sharded, 4):
        assert len(one) == len(list(Framed().parameters())) and max(one.values()) < 1e-10, one
