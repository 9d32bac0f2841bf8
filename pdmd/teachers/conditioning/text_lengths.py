r"""Lengths of texts, known without reading the device.

A condition with a mask pads its texts to one length :math:`L`. Attention is slower with a mask
than without, and to see on an accelerator that a mask is not needed, the program would wait for
it. The numbers of tokens :math:`n_i` are therefore kept beside the tensors, as Python integers
in the field ``lengths``. They go along when a condition is indexed, joined, expanded or moved, so
that :math:`L = \max_i n_i`, and no mask where all :math:`n_i` are equal, cost no synchronization.

Tokens after the first :math:`n_i` of a text are masked: neither their number nor their values
change a prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pdmd.typing import LENGTHS, moved

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = [
    "TrimmedConditions",
    "count_tokens",
    "lengths_of",
    "text_mask",
    "trimmed",
    "with_full_lengths",
    "with_lengths",
]

MASK = "mask"


def count_tokens(mask: Tensor) -> list[int] | None:
    """Counts the tokens of each text. Reads the mask, so it waits for its device.

    Args:
        mask: True at tokens of the text, with shape :math:`(B, L)`.

    Returns:
        One number per row; ``None`` if a text has no token, or does not start at the first one.
    """
    mask = mask.bool()
    counts = mask.sum(1)
    prefix = torch.arange(mask.shape[1], device=mask.device) < counts[:, None]
    return counts.tolist() if bool(((prefix == mask).all(1) & (counts > 0)).all()) else None


def with_lengths(condition: TensorDict) -> TensorDict:
    """Adds ``lengths`` to a condition with a mask, if every text starts at its first token.

    Other conditions are returned unchanged: their masks are always used.
    """
    if MASK not in condition or LENGTHS in condition:
        return condition
    lengths = count_tokens(condition[MASK])
    return _with(condition, lengths) if lengths else condition


def with_full_lengths(condition: TensorDict) -> TensorDict:
    """Replaces mask and ``lengths`` by those of texts without padding.

    Args:
        condition: A condition with batch size :math:`(B)`, whose texts have one length.
    """
    rows, length = condition["prompt"].shape[:2]
    known = condition.exclude(LENGTHS)
    device = condition["prompt"].device
    known[MASK] = torch.ones(rows, length, dtype=torch.bool, device=device)
    return _with(known, [length] * rows)


def lengths_of(condition: TensorDict) -> list[int] | None:
    """Returns the numbers of tokens of texts, as far as they are known without waiting.

    Args:
        condition: A condition with batch size :math:`(B)`.

    Returns:
        One number per row; ``None`` if there is a mask without lengths, or no text.
    """
    if LENGTHS in condition:
        return list(condition[LENGTHS])
    if MASK in condition or "prompt" not in condition:
        return None
    return [condition["prompt"].shape[1]] * int(condition.batch_size[0])


def trimmed(condition: TensorDict) -> TensorDict:
    """Cuts the padding beyond the longest text, without a copy.

    Args:
        condition: A condition with batch size :math:`(B)`; one without lengths is unchanged.
    """
    if LENGTHS not in condition or MASK not in condition:
        return condition
    longest = max(condition[LENGTHS])
    if longest >= condition[MASK].shape[1]:
        return condition
    cut = condition.clone(recurse=False)
    for key in _sequences(condition):
        cut[key] = condition[key][:, :longest]
    return cut


def text_mask(condition: TensorDict) -> Tensor | None:
    """Returns the mask of a condition, or ``None`` if it is known to be true everywhere.

    Args:
        condition: A condition with batch size :math:`(B)`.

    Returns:
        The mask, with shape :math:`(B, L)`.
    """
    mask = condition.get(MASK, None)
    if mask is None:
        return None
    lengths = lengths_of(condition)
    return None if lengths and min(lengths) >= mask.shape[1] else mask


class TrimmedConditions:
    """Masked conditions in memory, whose batches are padded to their own longest text.

    Args:
        condition: All conditions, with ``mask`` and batch size :math:`(N)`.
        lengths: The number of tokens of each text.
    """

    def __init__(self, condition: TensorDict, lengths: Sequence[int]) -> None:
        self._condition = condition.exclude(LENGTHS)
        self._lengths = list(lengths)

    @classmethod
    def of(cls, condition: TensorDict) -> TensorDict | TrimmedConditions:
        """Returns trimmed conditions, or the given ones if :func:`with_lengths` adds nothing."""
        lengths = count_tokens(condition[MASK]) if MASK in condition else None
        return cls(condition, lengths) if lengths else condition

    @property
    def batch_size(self) -> torch.Size:
        """The number of rows :math:`(N)`."""
        return self._condition.batch_size

    def to(self, device: torch.device | str) -> TrimmedConditions:
        """Returns the same conditions on a device; their lengths stay in memory."""
        return TrimmedConditions(self._condition.to(device), self._lengths)

    def __getitem__(self, rows: Tensor | slice) -> TensorDict:
        """Reads rows.

        Args:
            rows: Indices, int64 on the CPU, with shape :math:`(B)`, or a slice.

        Returns:
            A condition with batch size :math:`(B)`, with ``lengths``.
        """
        from tensordict import TensorDict

        if isinstance(rows, slice):
            rows = torch.arange(len(self._lengths))[rows]
        lengths = [self._lengths[i] for i in rows.tolist()]
        longest = max(lengths, default=1)
        sequences, fields = _sequences(self._condition), {}
        items: Any = self._condition.items()
        for key, value in items:
            kept = value[:, :longest] if key in sequences else value
            fields[key] = kept[moved(rows, value.device)]
        batch = TensorDict(fields, batch_size=[len(lengths)])
        return _with(batch, lengths) if lengths else batch


def _with(condition: TensorDict, lengths: Sequence[int]) -> TensorDict:
    from tensordict import NonTensorStack

    known = condition.clone(recurse=False)
    known[LENGTHS] = NonTensorStack(*lengths)
    return known


def _sequences(condition: TensorDict) -> list[str]:
    """Returns the keys of the mask and of the sequences that it masks."""
    length = condition[MASK].shape[1]
    items: Any = condition.items()
    return [
        key
        for key, value in items
        if isinstance(value, Tensor)
        and (key == MASK or value.ndim == 3)
        and value.shape[1] == length
    ]
