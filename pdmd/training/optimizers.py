"""Optimizer recipes: which optimizer, and how its rate falls."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["AdamRecipe", "ContainerRates", "RateSchedule"]


@dataclass(frozen=True, kw_only=True)
class AdamRecipe:
    """AdamW, with a rate that is constant and then falls linearly.

    Attributes:
        lr: The learning rate.
        betas: The decay rates of the two moments.
        weight_decay: Decoupled weight decay.
        decay_from: The share of the updates after which the rate falls; 1 never.
        decay_to: The share of ``lr`` reached at the end.

    Raises:
        ValueError: If a number is out of its range.
    """

    lr: float = 5e-4
    betas: tuple[float, float] = (0.5, 0.99)
    weight_decay: float = 0.0
    decay_from: float = 0.5
    decay_to: float = 0.02

    def __post_init__(self) -> None:
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"a learning rate is positive, got {self.lr}")
        for beta in self.betas:
            if not 0 <= beta < 1:
                raise ValueError(f"betas are in [0, 1), got {self.betas}")
        for name in ("decay_from", "decay_to"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is in [0, 1], got {getattr(self, name)}")
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}")

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Makes the optimizer."""
        return torch.optim.AdamW(
            parameters, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay, fused=True
        )

    def factor(self, progress: float) -> float:
        """Returns the share of ``lr`` after a share of the updates, from 0 to 1."""
        if self.decay_from >= 1 or progress <= self.decay_from:
            return 1.0
        fall = (progress - self.decay_from) / (1 - self.decay_from)
        return 1 - (1 - self.decay_to) * min(fall, 1.0)

    def rate(self, progress: float) -> float:
        """Returns the learning rate after a share of the updates, from 0 to 1."""
        return self.lr * self.factor(progress)


class RateSchedule:
    """Sets the learning rate of optimizers as their recipe says.

    Args:
        optimizers: The optimizers.
        recipe: Their recipe.
        updates: The number of updates over which the rate runs.
    """

    def __init__(
        self, optimizers: Iterable[torch.optim.Optimizer], recipe: AdamRecipe, updates: int
    ) -> None:
        self.optimizers, self.recipe, self.updates = list(optimizers), recipe, updates
        self.load_state_dict({"last_epoch": 0})

    def step(self) -> None:
        """Goes on to the next update."""
        self.load_state_dict({"last_epoch": self.update + 1})

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes to the update ``last_epoch``."""
        self.update = int(state_dict["last_epoch"])
        rate = self.recipe.rate(self.update / max(self.updates, 1))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate


class ContainerRates:
    """torchtitan's schedulers, which set the rate again when they are loaded.

    Args:
        schedulers: Its container of them.
    """

    def __init__(self, schedulers: Any) -> None:
        self.schedulers = schedulers

    def step(self) -> None:
        """Hears of a cycle."""
        with warnings.catch_warnings():  # a role may have no update in a cycle
            warnings.simplefilter("ignore")
            self.schedulers.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes back to what was kept, and sets the rates of then."""
        with warnings.catch_warnings():  # the rate is asked for outside of a step
            warnings.simplefilter("ignore")
            self.schedulers.load_state_dict(state_dict)
        for scheduler in self.schedulers:
            groups = scheduler.optimizer.param_groups
            for group, rate in zip(groups, scheduler.get_last_lr(), strict=True):
                group["lr"] = rate
