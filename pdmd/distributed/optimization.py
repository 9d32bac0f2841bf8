"""Optimization of placed networks: optimizers, learning-rate schedules, gradient clipping."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pdmd.training.optimizers import AdamRecipe, RateSchedule

__all__ = ["LocalOptimization", "Optimization", "Optimizers", "Rates", "SingleOptimizer"]


class Optimizers(Protocol):
    """One or several optimizers that step together, like torchtitan's container."""

    def step(self) -> None:
        """Updates the parameters."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Resets the gradients."""

    def __iter__(self) -> Iterator[torch.optim.Optimizer]:
        """Iterates over the optimizers."""
        ...


class Rates(Protocol):
    """A learning-rate schedule of optimizers, like torchtitan's container."""

    def step(self) -> None:
        """Advances to the next update."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Jumps to the update ``last_epoch``."""


class Optimization(ABC):
    """Builds and steps the optimizers of placed networks."""

    @abstractmethod
    def optimizers(self, recipe: AdamRecipe, network: nn.Module) -> Optimizers:
        """Builds the optimizers of a placed network."""

    @abstractmethod
    def rates(self, optimizers: Optimizers, recipe: AdamRecipe, updates: int) -> Rates:
        """Builds the learning-rate schedule of optimizers over a number of updates."""

    @abstractmethod
    def clip_gradients(
        self, network: nn.Module, parameters: Sequence[nn.Parameter], max_grad_norm: float
    ) -> Tensor:
        """Clips the gradient norm of a network, and returns the norm before clipping.

        Args:
            network: The network.
            parameters: Its parameters, which the caller lists once and not in every update.
            max_grad_norm: The largest norm.
        """

    def step(self, optimizers: Optimizers, finite: Tensor) -> None:
        """Updates the parameters if a flag is set, without synchronizing with the device.

        Args:
            optimizers: Fused optimizers.
            finite: The flag, a scalar on the device of the parameters.
        """
        if finite.is_cpu:  # there is no device to wait for
            if finite:
                for optimizer in optimizers:
                    optimizer.step()
            return
        for optimizer in optimizers:
            optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
            optimizer.step()


class LocalOptimization(Optimization):
    """One process: plain torch optimizers.

    Args:
        offload: Whether to keep moments in CPU memory.
    """

    def __init__(self, *, offload: bool = False) -> None:
        self.offload = offload

    def optimizers(self, recipe: AdamRecipe, network: nn.Module) -> Optimizers:
        return SingleOptimizer(recipe.build(network.parameters(), offload=self.offload))

    def rates(self, optimizers: Optimizers, recipe: AdamRecipe, updates: int) -> Rates:
        return RateSchedule(optimizers, recipe, updates)

    def clip_gradients(
        self, network: nn.Module, parameters: Sequence[nn.Parameter], max_grad_norm: float
    ) -> Tensor:
        norm = nn.utils.get_total_norm(
            [gradient for p in parameters if (gradient := p.grad) is not None]
        )
        if not norm.is_cpu or norm > max_grad_norm:  # a CPU is not waited for
            nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
        return norm


class SingleOptimizer:
    """A single optimizer, as a container of one.

    Args:
        optimizer: The optimizer.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def step(self) -> None:
        self.optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def __iter__(self) -> Iterator[torch.optim.Optimizer]:
        return iter([self.optimizer])
