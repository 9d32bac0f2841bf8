"""Tensor parallelism: packed, tied and copied weights, and compiled blocks."""

import copy

import pytest
import torch
from torch import nn

from pdmd.distributed import (
    permutations,
    replicate,
    tensor_parallelize,
    units_of,
)
from tests.distributed.networks import Network
from tests.distributed.parity import full, make_mesh, relative
from tests.distributed.ranks import run_ranks
from tests.helpers.splitting import double, tokens


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


@pytest.mark.distributed
def test_packed_tied_and_copied_weights_are_those_of_one_process():
    run_ranks(weights, 2)
