"""Modes of evaluation: modules without dropout, and calls that need gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["check_gradients_on", "evaluation_mode"]


def check_gradients_on(name: str) -> None:
    """Checks that gradients are recorded where a function is called.

    Args:
        name: What the function is called, for the error.

    Raises:
        ValueError: If they are not.
    """
    if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        off = "torch.inference_mode()" if torch.is_inference_mode_enabled() else "torch.no_grad()"
        raise ValueError(
            f"{name} computes gradients, which are off here, as by {off} or "
            "torch.set_grad_enabled(False); call it outside of that"
        )


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
