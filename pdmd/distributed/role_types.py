r"""Types of networks by role: in which they compute, and in which frozen ones are stored.

Weights in training, their gradients and moments are float32 whatever the role: in bfloat16, of 8
bits of precision, an update below :math:`2^{-9}` of its weight is lost. The same holds of an
average :math:`\bar\theta + (1 - \gamma)(\theta - \bar\theta)`, which moves by less than its
network; only without averaging, :math:`\gamma = 0`, it is a copy that may be stored narrower.

References:
    Micikevicius et al., Mixed Precision Training, arXiv:1710.03740, Section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pdmd.arguments import checked

__all__ = ["RoleTypes"]


@checked
@dataclass(frozen=True, kw_only=True)
class RoleTypes:
    """The types of a distillation's networks.

    Attributes:
        teacher: In which the teacher computes, and in which its shards are stored. Adapters share
            it as their base, so that their roles have this type.
        generator: In which experts compute.
        fake: In which fake scores compute.
        average: In which the weight averages, and so the finished experts, are stored; float32,
            or that of the experts where nothing is averaged (a decay of 0).

    Raises:
        ValueError: If a type is neither float32 nor bfloat16, or averages are stored narrower than
            experts compute.
    """

    teacher: torch.dtype = torch.float32
    generator: torch.dtype = torch.float32
    fake: torch.dtype = torch.float32
    average: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        for role, dtype in vars(self).items():
            if dtype not in (torch.float32, torch.bfloat16):
                raise ValueError(
                    f"the type of the {role} is float32 or bfloat16, got {dtype}; float16 would "
                    "need scaled losses"
                )
        if self.average.itemsize < self.generator.itemsize:
            raise ValueError(
                f"averages in {self.average} would lose what experts that compute in "
                f"{self.generator} use; store them in float32, or let experts compute in bfloat16"
            )

    @classmethod
    def alike(cls, precision: torch.dtype) -> RoleTypes:
        """Returns the types of networks that all compute in one.

        Args:
            precision: The type.
        """
        return cls(teacher=precision, generator=precision, fake=precision)

    def check(self, *, ema: float, adapted: tuple[str, ...]) -> None:
        """Checks that the types fit a training.

        Args:
            ema: The decay of the weight average.
            adapted: The roles, ``generator`` and ``fake``, whose networks are adapters.

        Raises:
            ValueError: If averages would lose their updates, or adapters have another type than
                their base.
        """
        if self.average != torch.float32 and ema > 0:
            raise ValueError(
                f"a weight average of decay {ema} in {self.average} loses most of its updates; "
                "store averages in float32, or train with a decay (ema) of 0"
            )
        for role in adapted:
            if getattr(self, role) != self.teacher:
                raise ValueError(
                    f"the {role} is an adapter over the teacher's network, which computes in "
                    f"{self.teacher}, not in {getattr(self, role)}; give both the same type, or "
                    "train full weights"
                )
