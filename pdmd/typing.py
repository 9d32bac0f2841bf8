r"""Shared types: latents, times and conditions.

Time is a float :math:`t \in [0, 1]`: 0 is clean data, 1 is noise. Libraries with another
convention are converted inside their model family and nowhere else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch

if TYPE_CHECKING:
    from tensordict import TensorDict

    Condition: TypeAlias = TensorDict | None
    Conditions: TypeAlias = "TensorDict | LazyConditions"
else:
    Condition = Conditions = object

__all__ = [
    "LENGTHS",
    "Condition",
    "Conditions",
    "Latents",
    "LazyConditions",
    "Times",
    "expand",
    "join_conditions",
    "labels_of",
    "moved",
    "repeat_condition",
]

Latents: TypeAlias = torch.Tensor
"""Noisy or clean samples, with shape :math:`(B, *)`."""

LENGTHS = "lengths"
"""Field of a condition with the number of tokens of each text, as Python integers."""

Times: TypeAlias = torch.Tensor | float
"""Times in :math:`[0, 1]`: a float, or a tensor with shape :math:`(B)` or :math:`()`."""


class LazyConditions(Protocol):
    """Conditions read from storage on access, indexed like a TensorDict."""

    @property
    def batch_size(self) -> torch.Size:
        """The number of rows :math:`(N)`."""
        ...

    def to(self, device: torch.device, /) -> LazyConditions:
        """Returns the same rows, placed on ``device`` when they are read."""
        ...

    def __getitem__(self, rows: torch.Tensor | slice, /) -> TensorDict:
        """Reads the rows of an int64 index of shape :math:`(B)`, or of a slice."""
        ...


_WIDE = (torch.float32, torch.float64)


def moved(x: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Moves a tensor to a device; copies from CPU to an accelerator are asynchronous.

    Args:
        x: A tensor of any shape.
        device: The target device.

    Returns:
        The tensor on ``device``: ``x`` itself if it is already there.
    """
    if x.device == device:
        return x
    if not x.is_cpu:
        return x.to(device)
    if torch.device(device).type == "cuda":
        x = x.pin_memory()  # a copy from pageable memory would block
    return x.to(device, non_blocking=True)


def expand(coefficient: torch.Tensor, x: Latents) -> torch.Tensor:
    """Reshapes a per-sample coefficient to broadcast over latents.

    Args:
        coefficient: Float64 coefficient, with shape :math:`()` or :math:`(B)`.
        x: The latents to multiply, with shape :math:`(B, *)`.

    Returns:
        The coefficient with shape :math:`(1, 1, ...)` or :math:`(B, 1, ...)`, on the device of
        ``x``, in its dtype promoted to at least float32; so is a product of the two. A scalar on
        the CPU, which every device multiplies by without a copy, is returned as it is if ``x`` is
        as wide.
    """
    if coefficient.ndim == 0 and coefficient.is_cpu and x.dtype in _WIDE:
        return coefficient
    dtype = x.dtype if x.dtype in _WIDE else torch.promote_types(x.dtype, torch.float32)
    coefficient = moved(coefficient, x.device).to(dtype)
    return coefficient.reshape(-1, *(1,) * (x.ndim - 1))


def repeat_condition(condition: Condition, batch: int) -> Condition:
    """Expands a condition of batch size one to ``batch`` rows, without copying.

    Args:
        condition: A condition with batch size :math:`(1)`, or ``None``.
        batch: The number of rows :math:`B`.

    Returns:
        A condition with batch size :math:`(B)`, or ``None``.
    """
    return None if condition is None else condition.expand(batch)


def join_conditions(*conditions: TensorDict) -> TensorDict:
    r"""Concatenates conditions along the batch.

    Sequences of different lengths, such as text embeddings and their masks, are zero-padded at
    the end to the longest. :data:`LENGTHS` are kept if all conditions have them.

    Args:
        conditions: Conditions with the same keys, with batch sizes :math:`(B_i)`.

    Returns:
        A condition with batch size :math:`(\sum_i B_i)`.
    """
    from tensordict import TensorDict

    rows: Any = conditions
    if not all(LENGTHS in condition for condition in rows):
        rows = [condition.exclude(LENGTHS) for condition in rows]
    longest = {
        key: max(condition[key].shape[1] for condition in rows)
        for key, value in rows[0].items()
        if value.ndim > 1
    }

    def padded(condition: Any) -> TensorDict:
        fields: dict[str, torch.Tensor] = {}
        for key, value in condition.items():  # lengths have one dimension
            missing = longest[key] - value.shape[1] if value.ndim > 1 else 0
            if missing > 0:
                padding = value.new_zeros(len(value), missing, *value.shape[2:])
                value = torch.cat([value, padding], 1)
            fields[key] = value
        return TensorDict(fields, batch_size=condition.batch_size)

    joined: Any = torch.cat([padded(condition) for condition in rows])  # type: ignore[list-item]
    return joined


def labels_of(condition: Condition) -> torch.Tensor:
    """Returns the class labels of a condition.

    Args:
        condition: A TensorDict with ``label``, of batch size :math:`(B)`.

    Returns:
        The labels, int64, with shape :math:`(B)`.

    Raises:
        ValueError: If the condition has no ``label``.
    """
    if condition is None or "label" not in condition:
        raise ValueError("the condition has no 'label'; build it with the teacher's encode()")
    return condition["label"]
