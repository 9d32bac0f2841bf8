"""Consensus of ranks: decisions they take together, and errors they raise together."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

from pdmd.diffusion.routers import RoutedDenoiser
from pdmd.distributed.placement import local_part

__all__ = ["consensus", "drop_unused", "mean_over_ranks", "on_any_rank"]

_blocks = itertools.count()  # in one order on all ranks


@contextlib.contextmanager
def consensus(rank: int) -> Iterator[None]:
    """Raises on every rank what a block raised on one; all ranks go through it together.

    Args:
        rank: This rank.

    Raises:
        ValueError: If a rank's block did.
        OSError: Likewise.
    """
    error: Exception | None = None
    try:
        yield
    except (ValueError, OSError) as raised:
        error = raised
    store = PrefixStore(f"pdmd/consensus/{next(_blocks)}", _get_default_store())
    kind = "" if error is None else "ValueError " if isinstance(error, ValueError) else "OSError "
    store.set(str(rank), f"{kind}{error}" if kind else "")
    said = [store.get(str(other)).decode() for other in range(dist.get_world_size())]
    if error is not None:
        raise error
    for other, message in enumerate(said):
        if message:
            kind, _, text = message.partition(" ")
            raise (OSError if kind == "OSError" else ValueError)(f"{text} (on rank {other})")


def mean_over_ranks(value: Tensor, device: torch.device) -> Tensor:
    """Returns the mean of a value over all ranks.

    It is over all, so that even those that share a batch agree to the bit on what it decides.

    Args:
        value: This rank's value.
        device: Where the ranks meet.
    """
    total = value.detach().to(device, copy=True)
    dist.all_reduce(total)
    return total / dist.get_world_size()


def on_any_rank(flag: bool, device: torch.device) -> bool:
    """Says whether a flag is set on any rank.

    Args:
        flag: This rank's flag.
        device: Where the ranks meet.
    """
    tensor = torch.tensor(float(flag), device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return bool(tensor)


def drop_unused(routed: RoutedDenoiser, device: torch.device) -> None:
    """Takes the gradient from networks that no row of the batch was routed to, on any rank.

    They were called all the same, and have zeros: an optimizer would move them on.

    Args:
        routed: The networks, with their gradients.
        device: Where the ranks meet.
    """
    used = torch.zeros(len(routed.denoisers), device=device)
    for i, denoiser in enumerate(routed.denoisers):
        gradients = [p.grad for p in denoiser.parameters() if p.grad is not None]
        used[i] = float(any(bool(local_part(g).any()) for g in gradients))
    dist.all_reduce(used, dist.ReduceOp.MAX)
    for flag, denoiser in zip(used.tolist(), routed.denoisers, strict=True):
        if not flag:
            denoiser.zero_grad(set_to_none=True)
