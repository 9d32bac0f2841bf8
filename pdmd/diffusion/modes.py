"""Evaluation mode: modules without dropout, as they were before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["evaluation_mode"]


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Puts a module into evaluation mode within a block; then restores the mode of every part.

    A teacher may have been left in training mode, in which its networks and its text encoder
    drop numbers at random.

    Args:
        module: The module.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
