"""Optimization of placed networks: optimizers, their learning rates, and gradient clipping."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pdmd.training.optimizers import AdamRecipe, RateSchedule

__all__ = ["LocalOptimization", "Optimization", "Optimizers", "Rates"]


class Optimizers(Protocol):
    """One or several optimizers that step together; torchtitan's container is one."""

    def step(self) -> None:
        """Updates the parameters."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops the gradients."""

    def __iter__(self) -> Iterator[torch.optim.Optimizer]:
        """Iterates over the optimizers."""
        ...


class Rates(Protocol):
    """Sets the learning rates of optimizers; torchtitan's container is one."""

    def step(self) -> None:
        """Advances to the next update."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Jumps to the update ``last_epoch``."""


class Optimization(ABC):
    """Builds and steps the optimizers of placed networks."""

    @abstractmethod
    def optimizers(self, recipe: AdamRecipe, network: nn.Module) -> Optimizers:
        """Builds a placed network's optimizers."""

    @abstractmethod
    def rates(self, optimizers: Optimizers, recipe: AdamRecipe, updates: int) -> Rates:
        """Builds the schedule of their learning rate over a number of updates."""

    @abstractmethod
    def clip_gradients(self, network: nn.Module, max_grad_norm: float) -> Tensor:
        """Scales a network's gradient down to a largest norm; returns its norm before."""

    def step(self, optimizers: Optimizers, finite: Tensor) -> None:
        """Updates the parameters where a flag is set, without waiting for the device.

        Args:
            optimizers: The optimizers, whose steps are fused.
            finite: The flag, a scalar on the device of the parameters.
        """
        for optimizer in optimizers:
            optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
            optimizer.step()


class LocalOptimization(Optimization):
    """One process: torch's own optimizers."""

    def optimizers(self, recipe: AdamRecipe, network: nn.Module) -> Optimizers:
        return _SingleOptimizer(recipe.build(network.parameters()))

    def rates(self, optimizers: Optimizers, recipe: AdamRecipe, updates: int) -> Rates:
        return RateSchedule(optimizers, recipe, updates)

    def clip_gradients(self, network: nn.Module, max_grad_norm: float) -> Tensor:
        return nn.utils.clip_grad_norm_(network.parameters(), max_grad_norm)


class _SingleOptimizer:
    """A single optimizer, as a container of one."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def step(self) -> None:
        self.optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def __iter__(self) -> Iterator[torch.optim.Optimizer]:
        return iter([self.optimizer])
