"""Consensus of ranks: joint decisions and joint errors."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

from pdmd.diffusion.routers import RoutedDenoiser
from pdmd.distributed.collectives import local_part

__all__ = ["consensus", "drop_unused", "highest_over_ranks", "mean_over_ranks"]

_blocks = itertools.count()  # in the same order on all ranks


@contextlib.contextmanager
def consensus(rank: int) -> Iterator[None]:
    """Runs a block on every rank; an error on one is raised on all.

    Args:
        rank: This rank.

    Raises:
        ValueError: If the block raised one on any rank.
        OSError: If the block raised one on any rank.
    """
    error: Exception | None = None
    try:
        yield
    except (ValueError, OSError) as raised:
        error = raised
    store = PrefixStore(f"pdmd/consensus/{next(_blocks)}", _get_default_store())
    kind = "" if error is None else "ValueError " if isinstance(error, ValueError) else "OSError "
    store.set(str(rank), f"{kind}{error}" if kind else "")
    messages = [store.get(str(other)).decode() for other in range(dist.get_world_size())]
    if error is not None:
        raise error
    for other, message in enumerate(messages):
        if message:
            kind, _, text = message.partition(" ")
            raise (OSError if kind == "OSError" else ValueError)(f"{text} (on rank {other})")


def mean_over_ranks(value: Tensor, device: torch.device) -> Tensor:
    """Returns the mean of a value over all ranks.

    The mean includes ranks with the same rows of the batch, so that all have the same bits.

    Args:
        value: This rank's value.
        device: Device of the collective.
    """
    total = value.detach().to(device, copy=True)
    dist.all_reduce(total)
    return total / dist.get_world_size()


def highest_over_ranks(value: int, hosts: dist.ProcessGroup | None) -> int:
    """Returns the highest of the ranks' values.

    The value stays on the CPU, so that ranks wait for each other's processes, but not for the work
    that is queued on their devices.

    Args:
        value: This rank's value.
        hosts: A process group of all ranks that communicates between CPUs; ``None`` for the
            default group.
    """
    tensor = torch.tensor(value, device="cpu")
    dist.all_reduce(tensor, dist.ReduceOp.MAX, group=hosts)
    return int(tensor)


def drop_unused(routed: RoutedDenoiser, device: torch.device) -> None:
    """Drops the gradients of networks to which no row of the batch was routed on any rank.

    Such networks were evaluated too, and have zero gradients, with which an optimizer would still
    update them.

    Args:
        routed: The routed networks, with gradients.
        device: Device of the collective.
    """
    used = torch.zeros(len(routed.denoisers), device=device)
    for i, denoiser in enumerate(routed.denoisers):
        gradients = [p.grad for p in denoiser.parameters() if p.grad is not None]
        used[i] = float(any(bool(local_part(g).any()) for g in gradients))
    dist.all_reduce(used, dist.ReduceOp.MAX)
    for flag, denoiser in zip(used.tolist(), routed.denoisers, strict=True):
        if not flag:
            denoiser.zero_grad(set_to_none=True)
