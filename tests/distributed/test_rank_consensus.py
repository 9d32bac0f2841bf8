"""Consensus of ranks: joint means, flags and errors, and gradients of unused networks."""

import pytest
import torch
import torch.distributed as dist

from pdmd import IntervalRouter, MlpDenoiser, RoutedDenoiser
from pdmd.distributed.rank_consensus import (
    consensus,
    drop_unused,
    highest_over_ranks,
    mean_over_ranks,
)
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.distributed
CPU = torch.device("cpu")


def messages(kind):
    """Returns the error that each rank raises when the block of rank 1 does."""
    rank = dist.get_rank()
    with consensus(rank):
        pass
    try:
        with consensus(rank):
            if rank == 1:
                raise kind("no space")
    except (ValueError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def unused():
    """Returns which networks keep gradients, if each rank routes to another one of three."""
    networks = [MlpDenoiser.rectified_flow(dim=2, width=4) for _ in range(3)]
    routed = RoutedDenoiser(networks, IntervalRouter([1, 0.6, 0.3, 0]))
    for i, network in enumerate(networks):
        for parameter in network.parameters():
            parameter.grad = torch.full_like(parameter, float(i == dist.get_rank()))
    drop_unused(routed, CPU)
    return [all(p.grad is not None for p in network.parameters()) for network in networks]


def on_two_ranks():
    rank = dist.get_rank()
    value = torch.tensor([1.0, 2.0]) * (rank + 1)
    mean = mean_over_ranks(value, CPU)
    assert torch.equal(value, torch.tensor([1.0, 2.0]) * (rank + 1))  # not changed in place
    flags = [highest_over_ranks(2 * rank, None), highest_over_ranks(0, None)]
    return mean, flags, [messages(ValueError), messages(OSError)], unused()


def test_ranks_agree_on_means_flags_errors_and_unused_networks():
    for rank, (mean, flags, errors, kept) in enumerate(run_ranks(on_two_ranks, 2)):
        assert torch.equal(mean, torch.tensor([1.5, 3.0])) and flags == [2, 0]
        where = "" if rank == 1 else " (on rank 1)"
        assert errors == [f"ValueError: no space{where}", f"OSError: no space{where}"]
        assert kept == [True, True, False]
