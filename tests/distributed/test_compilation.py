"""Compiled blocks under adapters: the values and gradients of blocks that are not compiled."""

import copy

import pytest
import torch

from pdmd.distillation.adapters import AdaptedDenoiser, LowRank
from pdmd.distributed import compilation
from pdmd.distributed.activation_checkpointing import checkpoint_units
from pdmd.teachers.packaged.digits import DigitsTeacher
from pdmd.teachers.packaged.transformer import ImageTransformer


def networks():
    """Returns a base of two blocks, and two adapters over it."""
    torch.manual_seed(0)
    base = DigitsTeacher(ImageTransformer(width=16, depth=2, heads=2), std=0.7)
    for parameter in base.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    roles = [AdaptedDenoiser(base, LowRank(rank=2, alpha=4), seed=i) for i in range(2)]
    for role in roles:
        for parameter in role.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return base, roles


def outcomes(base, roles):
    """Evaluates every role in turn, twice, with a gradient and without."""
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    condition, found = base.encode([1, 2]), []
    for _ in range(2):
        with torch.no_grad():
            found += [network(x, 0.5, condition).value for network in (base, *roles)]
        for role in roles:
            role.zero_grad()
            value = role(x, 0.5, condition).value
            value.square().sum().backward()
            found += [value.detach(), *(p.grad.clone() for p in role.parameters())]
    return found


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_blocks_add_the_adapter_of_each_call(backend, checkpointing, monkeypatch):
    expected = outcomes(*networks())
    torch._dynamo.reset()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    monkeypatch.setattr(compilation, "BACKEND", count if backend == "eager" else backend)
    base, roles = networks()
    before = copy.deepcopy(base.state_dict())
    compilation.compile_units(base)
    if checkpointing:
        checkpoint_units(base)
    got = outcomes(base, roles)
    for a, b in zip(expected, got, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(got[0], got[1], atol=1e-2)  # the roles differ
    assert not torch.allclose(got[1], got[2], atol=1e-2)
    assert base.state_dict().keys() == before.keys()
    if backend == "eager":  # for all blocks and both adapters; the first block's input differs
        assert len(graphs) == 4
