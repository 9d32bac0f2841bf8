"""Collectives: their values, and their derivatives against finite differences."""

import pytest
import torch

from pdmd.distributed import (
    Ranks,
    enter,
    exchange,
    gather,
    reduce,
)
from tests.distributed.parity import make_mesh
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.distributed


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


def test_gathered_tensors_are_whole_and_derivatives_exact():
    first, second = run_ranks(derivatives, 2)
    assert torch.equal(first, second)
