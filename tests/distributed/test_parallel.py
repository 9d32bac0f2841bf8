"""Gradients between networks, derivatives of derivatives, and what is refused."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from pdmd.parallel import (
    Columnwise,
    ContextPlan,
    Input,
    NormAcrossHeads,
    Output,
    PackedColumnwise,
    PackedRowwise,
    ParallelPlan,
    PerHead,
    Ranks,
    Rowwise,
    TensorPlan,
    check,
    context_parallelize,
    enter,
    exchange,
    gather,
    parallel_plans,
    permutations,
    plans_of,
    reduce,
    replicate,
    tensor_parallelize,
    units_of,
)
from pdmd.parallel.context import HeadExchange
from pdmd.parallel.styles import packed_order
from pdmd.routers import IntervalRouter, RoutedDenoiser
from pdmd.teachers.digits import DigitsTeacher
from pdmd.teachers.transformer import ImageTransformer
from tests.distributed.parity import distribute, full, make_mesh, relative
from tests.distributed.ranks import run_ranks

distributed = pytest.mark.distributed


class Block(nn.Module):
    """Attention and perceptron in one: every style at once."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.norm_q = nn.RMSNorm(width)
        self.norm_k = nn.RMSNorm(width // heads)
        self.up = nn.Linear(width, 2 * width)
        self.out = nn.Linear(3 * width, width)

    def forward(self, h):
        x = self.norm(h)
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k, v = (y.unflatten(2, (self.heads, -1)) for y in (self.norm_q(q), k, v))
        q, k, v = (y.transpose(1, 2) for y in (q, self.norm_k(k), v))
        attended = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return h + self.out(torch.cat([attended, nn.functional.gelu(self.up(x))], -1))


class Network(nn.Module):
    def __init__(self, width=16, heads=4, depth=2):
        super().__init__()
        self.width = width
        self.embed = nn.Linear(3, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.out = nn.Linear(width, 3)

    def forward(self, x):
        h = self.embed(x)
        for block in self.blocks:
            h = block(h)
        return self.out(h)

    def parallel_plan(self):
        width = self.width
        return ParallelPlan(
            units=("blocks.*",),
            tensor=TensorPlan(
                styles={
                    "blocks.*.qkv": PackedColumnwise((width, width, width)),
                    "blocks.*.norm_q": NormAcrossHeads(),
                    "blocks.*.norm_k": PerHead(),
                    "blocks.*.up": Columnwise(),
                    "blocks.*.out": PackedRowwise((width, 2 * width)),
                },
                divided={"blocks.*": ("heads",)},
            ),
            context=ContextPlan(
                split=(Input("blocks.0", "h", dim=1),),
                gather=(Output("out", dim=1),),
                attention={"blocks.*": "heads"},
            ),
        )


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
    """Runs all that needs two ranks, since starting them takes longest."""
    weights()
    lengths()
    return measure([(1, 2), (2, 1)]), derivatives()


@pytest.fixture(scope="module")
def two_ranks():
    return run_ranks(on_two_ranks, 2)


@distributed
def test_gradients_reach_through_networks_to_any_order(two_ranks):
    for found, _ in two_ranks:
        assert len(found) == 2 * len(CASES)
        for case, one in found.items():
            assert max(one.values()) < 1e-10, (case, one)


@distributed
@pytest.mark.slow
def test_gradients_reach_through_networks_split_both_ways():
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
def test_what_is_gathered_is_whole(two_ranks):
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


def lengths():
    """What only a forward can refuse."""
    mesh = make_mesh(context=2)["cp"]
    network = double(Network)
    context_parallelize(network, mesh)
    with pytest.raises(ValueError, match="the h of blocks.0 has 5 tokens.* over 2 context"):
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
    with pytest.raises(ValueError, match="Einsum computed no scaled_dot_product_attention"):
        own(tokens())


def test_packed_order_deals_out_every_part():
    order = packed_order((4, 2), 2)
    assert order.tolist() == [0, 1, 4, 2, 3, 5]
    assert packed_order((6,), 3).tolist() == list(range(6))


def test_plans_are_found_from_the_outside_in():
    teacher = DigitsTeacher(ImageTransformer(width=16, depth=3), std=1.0)
    assert list(plans_of(teacher)) == ["transformer"]
    routed = RoutedDenoiser([teacher, copy.deepcopy(teacher)], IntervalRouter([1, 0.5, 0]))
    paths = [f"denoisers.{i}.transformer" for i in (0, 1)]
    assert list(plans_of(routed)) == paths
    units = units_of(routed)
    assert [name for name, _ in units] == [f"{p}.blocks.{i}" for p in paths for i in range(3)]
    assert all(routed.get_submodule(name) is unit for name, unit in units)
    check(routed, tensor=2, context=2)


def test_a_class_is_registered_in_one_line():
    class Theirs(nn.Module):
        pass

    class Finer(Theirs):
        pass

    parallel_plans.register("Theirs")(lambda network: ParallelPlan(units=()))
    try:
        assert plans_of(Finer()) == {"": ParallelPlan(units=())}
    finally:
        parallel_plans.remove("Theirs")
    assert plans_of(Finer()) == {}


@pytest.mark.parametrize(
    ("degrees", "changes", "message"),
    [
        ({"tensor": 3}, {}, "16 features, which do not divide over 3 tensor"),
        ({"tensor": 4}, {"heads": 2}, "heads is 2, which does not divide over 4 tensor"),
        ({"context": 8}, {}, "4 heads .* do not divide over 8 context"),
        ({"tensor": 2, "context": 4}, {}, "2 heads on each tensor parallel rank.* over 4 context"),
    ],
)
def test_degrees_that_do_not_divide_are_refused(degrees, changes, message):
    with pytest.raises(ValueError, match=message):
        check(Network(**changes), **degrees)


class Stated(Network):
    def __init__(self, plan):
        super().__init__()
        self.plan = plan

    def parallel_plan(self):
        return self.plan


def styled(**styles):
    return ParallelPlan(("blocks.*",), TensorPlan({f"blocks.*.{k}": v for k, v in styles.items()}))


@pytest.mark.parametrize(
    ("plan", "degrees", "message"),
    [
        (ParallelPlan(("layers.*",)), {}, r"names 'layers\.\*', which the network does not have"),
        (ParallelPlan(()), {"tensor": 2}, "Stated has no tensor plan; state a TensorPlan"),
        (ParallelPlan(()), {"context": 2}, "Stated has no context plan; state a ContextPlan"),
        (styled(norm=Columnwise()), {"tensor": 2}, "norm is a LayerNorm; Columnwise splits"),
        (styled(norm=NormAcrossHeads()), {"tensor": 2}, "LayerNorm; NormAcrossHeads splits"),
        (styled(queries=Rowwise()), {"tensor": 2}, "names 'blocks.*.queries'"),
        (styled(qkv=PackedColumnwise((16, 16))), {"tensor": 2}, "48 features, its plan packs"),
        (
            ParallelPlan((), TensorPlan({"*.0.up": Columnwise(), "blocks.*.up": Columnwise()})),
            {"tensor": 2},
            "blocks.0.up is named by",
        ),
        (
            ParallelPlan((), TensorPlan({}, {"blocks.*": ("groups",)})),
            {"tensor": 2},
            "groups is None; a plan names an integer",
        ),
        (
            ParallelPlan((), None, ContextPlan((Input("blocks.0", "x", 1),), (), {})),
            {"context": 2},
            "blocks.0 has no argument 'x', which its context plan splits; it takes h",
        ),
    ],
)
def test_plans_that_do_not_fit_are_refused(plan, degrees, message):
    with pytest.raises(ValueError, match=message):
        check(Stated(plan), **degrees)


def test_a_network_without_a_plan_is_told_what_to_add():
    with pytest.raises(ValueError, match=r"Sequential states no parallel plan.*parallel_plan\(\)"):
        check(nn.Sequential(nn.Linear(2, 2)), tensor=2)
    check(nn.Identity(), tensor=2)


def test_attention_that_cannot_be_split_is_refused():
    ranks = Ranks("none", 2, 0)
    q = torch.randn(1, 2, 4, 8)
    with HeadExchange(ranks, []):
        with pytest.raises(ValueError, match="causal"):
            scaled_dot_product_attention(q, q, q, is_causal=True)
        with pytest.raises(ValueError, match="over the keys alone"):
            scaled_dot_product_attention(q, q, q, attn_mask=torch.ones(4, 4, dtype=torch.bool))
        with pytest.raises(ValueError, match="heads that divide over 2"):
            scaled_dot_product_attention(q[:, :1], q, q)
