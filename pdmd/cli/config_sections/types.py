"""The section ``[train.types]``: the types of the networks by role."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from pdmd.distributed.role_types import RoleTypes

__all__ = ["TypesConfig"]

Type = Literal["", "float32", "bfloat16"]


@dataclass(kw_only=True)
class TypesConfig:
    """Types of the networks by role; weights in training, gradients and losses are float32."""

    teacher: Type = ""
    """Type in which the teacher is stored and computes; that of parallel.precision by default."""
    generator: Type = ""
    """Type in which experts compute; that of parallel.precision by default."""
    fake: Type = ""
    """Type in which fake scores compute; that of parallel.precision by default."""
    average: Type = ""
    """Type of the weight averages and finished experts: float32 by default; bfloat16 takes
    train.ema = 0."""

    def build(self, precision: str) -> RoleTypes:
        """Builds the types.

        Args:
            precision: The name of the type of roles without one.

        Raises:
            ValueError: If averages are stored narrower than experts compute.
        """
        named = {
            "teacher": self.teacher or precision,
            "generator": self.generator or precision,
            "fake": self.fake or precision,
            "average": self.average or "float32",
        }
        try:
            return RoleTypes(**{role: getattr(torch, name) for role, name in named.items()})
        except ValueError as error:
            raise ValueError(f"train.types: {error}") from error
