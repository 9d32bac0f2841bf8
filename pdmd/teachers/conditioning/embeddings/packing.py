r"""Rows: conditions as they lie in a store, without the zeros that fill sequences up.

A condition's entry is of one of two specs. A *sequence* has shape :math:`(B, L, D)`, or is the
mask of shape :math:`(B, L)`; it is packed into :math:`(\sum_i n_i, D)` and the lengths
:math:`n_i`, where what comes after a row's first :math:`n_i` tokens is zero to the bit. Any other
entry, such as a pooled vector of shape :math:`(B, D)`, is kept as it is.

With a mask, :math:`L` is that of the longest row of the batch, for the mask and every sequence
that is as long as it: their shapes begin with ``None``. Without one it is always the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = ["FieldSpec", "field_specs", "pack", "unpack"]

MASK = "mask"


@dataclass(frozen=True)
class FieldSpec:
    """How an entry of a condition looks.

    Args:
        dtype: Its type, by torch's name.
        shape: The shape of a row; ``None`` is a length that differs between batches.
    """

    dtype: str
    shape: tuple[int | None, ...]

    @property
    def ragged(self) -> bool:
        """Whether the length is that of the longest row of a batch."""
        return self.shape[:1] == (None,)

    @property
    def packed(self) -> bool:
        """Whether it is a sequence, stored without what fills it up."""
        return self.ragged or len(self.shape) == 2

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type."""
        return getattr(torch, self.dtype)

    @property
    def rest(self) -> tuple[int, ...]:
        """The shape of a token of a sequence, of a row of anything else."""
        shape = self.shape[1:] if self.packed else self.shape
        return tuple(int(size) for size in shape if size is not None)

    def describe(self) -> dict[str, Any]:
        """Returns the spec as JSON values."""
        return {"dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def read(cls, description: Mapping[str, Any]) -> FieldSpec:
        """Returns the spec that :meth:`describe` described.

        Raises:
            ValueError: If it is none.
        """
        spec = cls(str(description["dtype"]), tuple(description["shape"]))
        if not isinstance(getattr(torch, spec.dtype, None), torch.dtype):
            raise ValueError(f"{spec.dtype!r} is no type of tensors")
        return spec

    def __str__(self) -> str:
        sizes = ", ".join("any" if size is None else str(size) for size in self.shape)
        return f"{self.dtype} ({sizes})"


def field_specs(condition: TensorDict) -> dict[str, FieldSpec]:
    """Returns the spec of every entry.

    Args:
        condition: A condition with batch size :math:`(B)`.

    Raises:
        ValueError: If an entry is nested, or its name holds a dot.
    """
    items: Any = condition.items()
    entries: dict[str, Any] = dict(items)
    mask = entries.get(MASK)
    specs = {}
    for key, value in entries.items():
        if not isinstance(value, Tensor) or "." in key:
            raise ValueError(
                f"embeddings are stored by plain names, and the condition's entry {key!r} is "
                "nested or holds a dot; give its tensors names of their own"
            )
        shape: list[int | None] = list(value.shape[1:])
        token = key == MASK or value.ndim == 3
        if mask is not None and token and value.shape[1] == mask.shape[1]:
            shape[0] = None
        specs[key] = FieldSpec(str(value.dtype).removeprefix("torch."), tuple(shape))
    return specs


def pack(
    condition: TensorDict, specs: Mapping[str, FieldSpec]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Takes the filling out of a condition's sequences.

    Args:
        condition: A condition with batch size :math:`(B)`.
        specs: The specs of its entries.

    Returns:
        The tensors by entry, those of sequences with shape :math:`(T, *)`, and the lengths of
        sequences by entry, int64, with shape :math:`(B)`.
    """
    lengths = {key: _lengths(condition[key]) for key, spec in specs.items() if spec.packed}
    ragged = [key for key in lengths if specs[key].ragged]
    if ragged:  # they go by one length
        longest = torch.stack([lengths[key] for key in ragged]).amax(0)
        lengths.update(dict.fromkeys(ragged, longest))
    tensors = {}
    for key in specs:
        value = condition[key]
        if key in lengths:
            kept = torch.arange(value.shape[1]) < lengths[key][:, None]
            value = value[kept]
        tensors[key] = value.contiguous()
    return tensors, lengths


def unpack(flat: Tensor, starts: Tensor, lengths: Tensor, length: int) -> Tensor:
    """Puts sequences next to each other, filled up with zeros.

    Args:
        flat: Tokens of all sequences, with shape :math:`(T, *)`.
        starts: Where each begins, int64, with shape :math:`(B)`.
        lengths: How long each is, int64, with shape :math:`(B)`.
        length: :math:`L`.

    Returns:
        A tensor of shape :math:`(B, L, *)`.
    """
    out = torch.zeros(len(starts), length, *flat.shape[1:], dtype=flat.dtype)
    for i, (start, n) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        out[i, :n] = flat[start : start + n]
    return out


def _lengths(value: Tensor) -> Tensor:
    """Counts the tokens up to the last that is not zero to the bit."""
    rows, tokens = value.shape[:2]
    if not value.numel():
        return torch.zeros(rows, dtype=torch.int64)
    filled = value.contiguous().view(torch.uint8).reshape(rows, tokens, -1).any(-1)
    return (filled * torch.arange(1, tokens + 1)).amax(1)
