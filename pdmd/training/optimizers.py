"""Optimizers: AdamW with a learning rate that warms up and decays.

The learning rate is that of :mod:`pdmd.training.learning_rates`; 8-bit moments and moments in CPU
memory are those of :mod:`pdmd.training.streamed_adam`.

References:
    Loshchilov and Hutter, Decoupled weight decay regularization, arXiv:1711.05101.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from pdmd.arguments import checked
from pdmd.training.fused_adam import FusedAdam
from pdmd.training.learning_rates import LinearDecay, RateDecay, warmup_factor
from pdmd.training.moments import EightBitMoments, Float32Moments, MomentFormat
from pdmd.training.streamed_adam import StreamedAdam

__all__ = ["AdamRecipe", "ContainerRates", "RateSchedule"]


@checked
@dataclass(frozen=True, kw_only=True)
class AdamRecipe:
    """AdamW and its learning rate, of one role in every phase.

    Attributes:
        lr: The learning rate.
        betas: Decay rates of the two moments.
        weight_decay: Decoupled weight decay.
        warmup: Updates over which the learning rate rises linearly to ``lr``; 0 for none.
        decay: Decay of the learning rate; by default constant for half of the updates, then
            linear to 2%.
        bits: Bits of each moment, 32, or 8 with torchao: a quarter of the memory
            (:mod:`~pdmd.training.moments`).

    Raises:
        ValueError: If a number is out of its range, or torchao is missing.
    """

    lr: float = 5e-4
    betas: tuple[float, float] = (0.5, 0.99)
    weight_decay: float = 0.0
    warmup: int = 0
    decay: RateDecay = field(default_factory=LinearDecay)
    bits: int = 32

    def __post_init__(self) -> None:
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"lr must be positive and finite, got {self.lr}")
        for beta in self.betas:
            if not 0 <= beta < 1:
                raise ValueError(f"betas must be in [0, 1), got {self.betas}")
        if self.warmup < 0:
            raise ValueError(f"warmup must not be negative, got {self.warmup}")
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}")
        self.moments()

    def moments(self) -> MomentFormat:
        """Builds the format of the moments.

        Raises:
            ValueError: If there is none of so many bits, or torchao is missing.
        """
        if self.bits not in (32, 8):
            raise ValueError(f"moments have 32 or 8 bits, got {self.bits}")
        return Float32Moments() if self.bits == 32 else EightBitMoments()

    def build(
        self, parameters: Iterable[torch.nn.Parameter], *, offload: bool = False
    ) -> torch.optim.Optimizer:
        """Builds the optimizer.

        Args:
            parameters: The parameters.
            offload: Whether to keep the moments in CPU memory.
        """
        if offload or self.bits == 8:
            return StreamedAdam(
                parameters,
                lr=self.lr,
                betas=self.betas,
                weight_decay=self.weight_decay,
                moments=self.moments(),
                offload=offload,
            )
        parameters = list(parameters)
        alike = len({(p.dtype, p.device) for p in parameters}) <= 1
        adam: Any = FusedAdam if alike else partial(torch.optim.AdamW, fused=True)
        return adam(parameters, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay)

    def factor(self, update: int, updates: int) -> float:
        """Returns the fraction of ``lr`` at an update.

        Args:
            update: The update, from 0; the last fraction holds from ``updates`` on.
            updates: Updates over which the decay runs.
        """
        decayed = self.decay(update / max(updates, 1))
        return decayed * warmup_factor(update, self.warmup)

    def rate(self, update: int, updates: int) -> float:
        """Returns the learning rate at an update; see :meth:`factor`."""
        return self.lr * self.factor(update, updates)


class RateSchedule:
    """Sets the learning rate of optimizers to that of their recipe.

    Args:
        optimizers: The optimizers.
        recipe: Their recipe.
        updates: Updates over which the schedule runs.
    """

    def __init__(
        self, optimizers: Iterable[torch.optim.Optimizer], recipe: AdamRecipe, updates: int
    ) -> None:
        self.optimizers, self.recipe, self.updates = list(optimizers), recipe, updates
        self.load_state_dict({"last_epoch": 0})

    def step(self) -> None:
        """Advances to the next update."""
        self.load_state_dict({"last_epoch": self.update + 1})

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Jumps to the update ``last_epoch``."""
        self.update = int(state_dict["last_epoch"])
        rate = self.recipe.rate(self.update, self.updates)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate


class ContainerRates:
    """torchtitan's learning-rate schedulers, which here also set the rate when loaded.

    Args:
        schedulers: torchtitan's container of schedulers.
    """

    def __init__(self, schedulers: Any) -> None:
        self.schedulers = schedulers

    def step(self) -> None:
        """Advances to the next update."""
        with warnings.catch_warnings():  # warns if a role had no update in this cycle
            warnings.simplefilter("ignore")
            self.schedulers.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the schedulers' state, and sets its learning rates."""
        with warnings.catch_warnings():  # warns that the rate is read outside of a step
            warnings.simplefilter("ignore")
            self.schedulers.load_state_dict(state_dict)
        for scheduler in self.schedulers:
            groups = scheduler.optimizer.param_groups
            for group, rate in zip(groups, scheduler.get_last_lr(), strict=True):
                group["lr"] = rate
