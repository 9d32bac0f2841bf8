r"""Packing of conditions: sequences without their padding.

A field of a condition is a *sequence* if it has shape :math:`(B, L, D)`, or is the mask of shape
:math:`(B, L)`. A sequence is packed into :math:`(\sum_i n_i, D)` and the lengths :math:`n_i`;
every bit of row :math:`i` after its first :math:`n_i` tokens is zero. Any other field, such as a
pooled embedding of shape :math:`(B, D)`, is stored unchanged.

With a mask, :math:`L` is the length of the longest row of the batch, for the mask and every
sequence of its length: these fields are *ragged*, and their shapes begin with ``None``. Without a
mask, :math:`L` is constant.
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
    """Dtype and shape of a field of a condition.

    Args:
        dtype: Name of the dtype in torch, such as ``"bfloat16"``.
        shape: Shape of a row, without the batch; ``None`` for a length that varies.
    """

    dtype: str
    shape: tuple[int | None, ...]

    @property
    def ragged(self) -> bool:
        """Whether the length is that of the longest row of the batch."""
        return self.shape[:1] == (None,)

    @property
    def packed(self) -> bool:
        """Whether the field is a sequence, stored without padding."""
        return self.ragged or len(self.shape) == 2

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype."""
        return getattr(torch, self.dtype)

    @property
    def rest(self) -> tuple[int, ...]:
        """The shape of a token of a sequence, or of a row of any other field."""
        shape = self.shape[1:] if self.packed else self.shape
        return tuple(int(size) for size in shape if size is not None)

    def describe(self) -> dict[str, Any]:
        """Returns the spec as JSON values."""
        return {"dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def read(cls, description: Mapping[str, Any]) -> FieldSpec:
        """Returns the spec of a description by :meth:`describe`.

        Raises:
            ValueError: If the dtype is unknown.
        """
        spec = cls(str(description["dtype"]), tuple(description["shape"]))
        if not isinstance(getattr(torch, spec.dtype, None), torch.dtype):
            raise ValueError(f"{spec.dtype!r} is not a dtype of torch")
        return spec

    def __str__(self) -> str:
        sizes = ", ".join("any" if size is None else str(size) for size in self.shape)
        return f"{self.dtype} ({sizes})"


def field_specs(condition: TensorDict) -> dict[str, FieldSpec]:
    """Returns the spec of every field of a condition.

    Args:
        condition: A condition with batch size :math:`(B)`.

    Raises:
        ValueError: If a field is nested, or its key has a dot.
    """
    items: Any = condition.items()
    fields: dict[str, Any] = dict(items)
    mask = fields.get(MASK)
    specs = {}
    for key, value in fields.items():
        if not isinstance(value, Tensor) or "." in key:
            raise ValueError(
                f"the field {key!r} of the condition cannot be stored: it is nested, or its key "
                "has a dot; use a flat TensorDict with keys without dots"
            )
        shape: list[int | None] = list(value.shape[1:])
        sequence = key == MASK or value.ndim == 3
        if mask is not None and sequence and value.shape[1] == mask.shape[1]:
            shape[0] = None
        specs[key] = FieldSpec(str(value.dtype).removeprefix("torch."), tuple(shape))
    return specs


def pack(
    condition: TensorDict, specs: Mapping[str, FieldSpec]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Removes the padding of the sequences of a condition.

    Args:
        condition: A condition with batch size :math:`(B)`.
        specs: The specs of its fields.

    Returns:
        The tensors by key, sequences with shape :math:`(T, *)` for a total of :math:`T` tokens;
        and the lengths of sequences by key, int64, with shape :math:`(B)`.
    """
    lengths = {key: _lengths(condition[key]) for key, spec in specs.items() if spec.packed}
    ragged = [key for key in lengths if specs[key].ragged]
    if ragged:  # they share one length per row
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
    """Gathers packed sequences into a zero-padded batch.

    Args:
        flat: Tokens of all sequences, with shape :math:`(T, *)`.
        starts: Index of the first token of each sequence, int64, with shape :math:`(B)`.
        lengths: Number of tokens of each sequence, int64, with shape :math:`(B)`.
        length: The padded length :math:`L`.

    Returns:
        A tensor of shape :math:`(B, L, *)`.
    """
    out = torch.zeros(len(starts), length, *flat.shape[1:], dtype=flat.dtype)
    for i, (start, n) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        out[i, :n] = flat[start : start + n]
    return out


def _lengths(value: Tensor) -> Tensor:
    """Counts the tokens of each row up to the last one with a nonzero bit."""
    rows, tokens = value.shape[:2]
    if not value.numel():
        return torch.zeros(rows, dtype=torch.int64)
    nonzero = value.contiguous().view(torch.uint8).reshape(rows, tokens, -1).any(-1)
    return (nonzero * torch.arange(1, tokens + 1)).amax(1)
