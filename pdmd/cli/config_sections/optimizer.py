"""The sections ``[train.generator]`` and ``[train.fake]``: the optimizer of one role."""

from __future__ import annotations

from dataclasses import dataclass, field

from pdmd.cli.composition import Composer
from pdmd.cli.values import Table
from pdmd.training.learning_rates import RateDecay
from pdmd.training.optimizers import AdamRecipe

__all__ = ["OptimizerConfig"]


@dataclass(kw_only=True)
class OptimizerConfig:
    """AdamW of one role, and the course of its learning rate in every phase."""

    betas: tuple[float, float] = (0.5, 0.99)
    """Decay rates of Adam's two moments."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    warmup: int = 0
    """Updates of a phase over which the learning rate rises linearly; 0 for none."""
    lr_decay: Table = field(default_factory=lambda: {"name": "constant"})
    """Decay of the learning rate over a phase: constant, linear or cosine, with its arguments
    start and final, for example {name = "linear", start = 0.5, final = 0.02}."""

    def build(self, lr: float, bits: int, where: str) -> AdamRecipe:
        """Builds the recipe.

        Args:
            lr: The learning rate.
            bits: Bits of the moments.
            where: The section, for errors.

        Raises:
            ValueError: If a value is out of its range.
        """
        decay = Composer().build(RateDecay, self.lr_decay, f"{where}.lr_decay")
        if len(self.betas) != 2:
            raise ValueError(f"{where}.betas are two numbers, got {self.betas}")
        try:
            return AdamRecipe(
                lr=lr,
                betas=(self.betas[0], self.betas[1]),
                weight_decay=self.weight_decay,
                warmup=self.warmup,
                decay=decay,
                bits=bits,
            )
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
