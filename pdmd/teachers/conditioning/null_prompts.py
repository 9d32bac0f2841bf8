"""Null prompts: what stands for no text where a family does not encode the empty one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pdmd.files import own_digest
from pdmd.teachers.conditioning.prompts import Prompts

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = ["ZeroedNull"]


class ZeroedNull(Prompts):
    """Prompts whose ``None`` is an embedding of zeros.

    Args:
        inner: The encoder of the others.
    """

    def __init__(self, inner: Prompts) -> None:
        self.inner = inner

    @property
    def prompts(self) -> Sequence[str]:
        """The encoder's prompts."""
        return self.inner.prompts

    def fingerprint(self) -> str | None:
        """The encoder's, changed by the zeros."""
        inner = self.inner.fingerprint()
        return None if inner is None else own_digest({"encoder": inner, "null": "zeros"})

    def encode(self, prompts: Sequence[str | None]) -> TensorDict:
        """Encodes, then zeroes the rows without a prompt."""
        condition = self.inner.encode(prompts)
        given = torch.tensor([prompt is not None for prompt in prompts])

        def zeroed(value: Tensor) -> Tensor:
            kept = given.to(value.device).reshape(-1, *(1,) * (value.ndim - 1))
            return torch.where(kept, value, torch.zeros_like(value))

        return condition.apply(zeroed)
