"""Gradients between networks, derivatives of derivatives, and weights that are split."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pdmd.distributed import (
    Ranks,
    context_parallelize,
    enter,
    exchange,
    gather,
    permutations,
    plans_of,
    reduce,
    replicate,
    tensor_parallelize,
    units_of,
)
from tests.distributed.networks import Block, Network
from tests.distributed.parity import distribute, full, make_mesh, relative
from tests.distributed.ranks import run_ranks

distributed = pytest.mark.distributed


class Framed(nn.Module):
    """Parameters before and after the network that states the plan."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.randn(3))
        self.inner = Network()
        self.last = nn.Linear(3, 3)

    def forward(self, x):
        return self.last(self.inner(self.gain * x).tanh())


def double(make):
    torch.manual_seed(3)
    network = make().double()
    for parameter in network.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return network


def tokens(seed=0):
    return torch.randn(2, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


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


def on_two_ranks():
    """Runs all tests on two ranks at once, because starting ranks takes longest."""
    weights()
    forward_errors()
    return measure([(1, 2), (2, 1)]), derivatives()


@pytest.fixture(scope="module")
def two_ranks():
    return run_ranks(on_two_ranks, 2)


@distributed
def test_gradients_flow_through_networks_to_any_order(two_ranks):
    for found, _ in two_ranks:
        assert len(found) == 2 * len(CASES)
        for case, one in found.items():
            assert max(one.values()) < 1e-10, (case, one)


@distributed
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


@distributed
@pytest.mark.slow
def test_one_rule_scales_every_gradient():
    for one in run_ranks(sharded, 4):
        assert len(one) == len(list(Framed().parameters())) and max(one.values()) < 1e-10, one


def derivatives():
    """Checks each collective against the sum over ranks of finite differences."""
    ranks = Ranks.of(make_mesh(tensor=2)["tp"], "tp")
    torch.manual_seed(0)
    whole = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    partial = torch.randn(
        2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(ranks.rank)
    ).requires_grad_()
    weight = torch.randn(2, 4, 6, dtype=torch.float64)  # the same on every rank

    def total(x):
        return reduce(x, ranks)

    # A function from whole to whole is one process's function, so gradcheck holds on each rank.
    maps = {
        "enter, reduce": (lambda x: total((enter(x, ranks) * (ranks.rank + 1)).pow(3)), whole),
        "enter, gather": (lambda x: gather(enter(x, ranks)[:, ranks.rank :: 2].exp(), ranks, 1),)
        + (whole,),
        "exchange": (
            lambda x: (
                gather(exchange(enter(x, ranks)[:, ranks.rank :: 2], ranks, 2, 1), ranks, 2)
                * weight
            ),
            whole,
        ),
    }
    for f, x in maps.values():
        assert torch.autograd.gradcheck(f, (x,))
        assert torch.autograd.gradgradcheck(f, (x,), (weight,))
    there = exchange(partial, ranks, 1, 2)
    assert there.shape == (2, 2, 12)
    assert torch.equal(exchange(there, ranks, 2, 1), partial)
    joined = gather(partial, ranks, 1)
    assert torch.equal(joined[:, 4 * ranks.rank :][:, :4], partial)
    return joined.detach()


@distributed
def test_gathered_tensors_are_whole(two_ranks):
    (_, first), (_, second) = two_ranks
    assert torch.equal(first, second)


def weights():
    """Packed weights, copies, tied parameters and compiled blocks, on two ranks."""
    mesh = make_mesh(tensor=2)["tp"]
    plain = double(Network)
    network = double(Network)
    tensor_parallelize(network, mesh)
    expected = dict(plain.named_parameters())
    permuted = permutations(network)
    assert set(permuted) == {f"blocks.{i}.{p}.weight" for i in (0, 1) for p in ("qkv", "out")}
    moved = 0
    for name, parameter in network.named_parameters():
        assert parameter.device_mesh.mesh_dim_names == ("tp",)
        assert torch.equal(full(name, parameter, permuted), expected[name])
        if name in permuted:
            dim, index = permuted[name]
            held = expected[name].index_select(dim, index.argsort())
            assert torch.equal(parameter.full_tensor(), held)
            moved += not torch.equal(held, expected[name])
    assert moved == 4

    twin = copy.deepcopy(network)
    y = network(tokens())
    assert torch.equal(twin(tokens()), y)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(twin(tokens()), torch.zeros_like(y))
    assert torch.equal(network(tokens()), y)

    assert type(network.blocks[0].qkv) is type(network.blocks[1].qkv)
    for _, unit in units_of(network):
        unit.compile(backend="aot_eager", fullgraph=True)
    assert relative(network(tokens()), y) < 1e-12

    tied = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    tied["b"].weight = tied["a"].weight
    replicate(tied, mesh)
    assert len(list(tied.parameters())) == 3

    with pytest.raises(ValueError, match="distributed already"):
        tensor_parallelize(network, mesh)
    with pytest.raises(ValueError, match="one dimension 'tp'"):
        tensor_parallelize(double(Network), make_mesh(context=2)["cp"])


def forward_errors():
    """Errors that only a forward pass can raise."""
    mesh = make_mesh(context=2)["cp"]
    network = double(Network)
    context_parallelize(network, mesh)
    with pytest.raises(ValueError, match="the h of blocks.0 has 5 tokens.* by 2 context"):
        network(tokens()[:, :5])
    assert network(tokens()).shape == (2, 6, 3)
    unit = network.blocks[1]
    unit.compile(backend="aot_eager", fullgraph=True)
    y = network(tokens())
    assert relative(y, double(Network)(tokens())) < 1e-12
    with pytest.raises(ValueError, match="split by context already"):
        context_parallelize(network, mesh)

    class Einsum(Block):
        def forward(self, h):
            return self.out(torch.cat([h, self.up(h)], -1))

    own = double(Network)
    own.blocks = nn.ModuleList([Einsum(16, 4).double()])
    context_parallelize(own, mesh)
    with pytest.raises(ValueError, match="Einsum did not call torch's scaled_dot_product"):
        own(tokens())
