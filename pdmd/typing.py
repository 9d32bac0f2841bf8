r"""The types that every module speaks: latents, times and conditions.

Time is a float :math:`t \in [0, 1]`: 0 is clean data, 1 is noise. Libraries that count
otherwise are converted inside their adapter and nowhere else.
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

Times: TypeAlias = torch.Tensor | float
"""Times in :math:`[0, 1]`: a float, or a tensor with shape :math:`(B)` or :math:`()`."""


class LazyConditions(Protocol):
    """Conditions that are read as they are asked for, indexed as a TensorDict of them would be."""

    @property
    def batch_size(self) -> torch.Size:
        """The number of rows :math:`(N)`."""
        ...

    def to(self, device: torch.device, /) -> LazyConditions:
        """Returns the rows with what is read of them on a device."""
        ...

    def __getitem__(self, rows: torch.Tensor | slice, /) -> TensorDict:
        """Reads rows by their numbers, int64, with shape :math:`(B)`, or by a slice."""
        ...


def moved(x: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Moves a tensor to a device; to an accelerator without waiting for it.

    Args:
        x: A tensor of any shape.
        device: Where it goes.

    Returns:
        The tensor there, which is ``x`` itself if it was there before.
    """
    if x.device == device:
        return x
    if not x.is_cpu:
        return x.to(device)
    if torch.device(device).type == "cuda":
        x = x.pin_memory()  # the copy would wait for other memory
    return x.to(device, non_blocking=True)


def expand(coefficient: torch.Tensor, x: Latents) -> torch.Tensor:
    """Shapes a per-sample coefficient so that it multiplies latents.

    Args:
        coefficient: Float64 coefficient, with shape :math:`()` or :math:`(B)`.
        x: Latents whose shape :math:`(B, *)` and arithmetic type the result takes.

    Returns:
        The coefficient with shape :math:`()` or :math:`(B, 1, ...)`, in float32 or wider.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    coefficient = moved(coefficient, x.device).to(dtype)
    if coefficient.ndim == 0:
        return coefficient
    return coefficient.reshape(-1, *(1,) * (x.ndim - 1))


def repeat_condition(condition: Condition, batch: int) -> Condition:
    """Expands a condition of batch size one to ``batch`` rows, without copying.

    Args:
        condition: A condition with batch size :math:`(1)`, or ``None``.
        batch: The number of rows wanted.

    Returns:
        A condition with batch size ``(batch,)``, or ``None``.
    """
    return None if condition is None else condition.expand(batch)


def join_conditions(*conditions: TensorDict) -> TensorDict:
    r"""Puts the rows of conditions one after the other.

    Sequences of different lengths, such as embeddings of text and their masks, are filled up with
    zeros at their ends.

    Args:
        conditions: Conditions of the same entries, with batch sizes :math:`(B_i)`.

    Returns:
        A condition with batch size :math:`(\sum_i B_i)`.
    """
    from tensordict import TensorDict

    rows: Any = conditions
    longest = {
        key: max(condition[key].shape[1] for condition in rows)
        for key, value in rows[0].items()
        if value.ndim > 1
    }

    def filled(own: Any) -> TensorDict:
        entries: dict[str, torch.Tensor] = {}
        for key, value in own.items():
            missing = longest[key] - value.shape[1] if value.ndim > 1 else 0
            if missing > 0:
                fill = value.new_zeros(len(value), missing, *value.shape[2:])
                value = torch.cat([value, fill], 1)
            entries[key] = value
        return TensorDict(entries, batch_size=own.batch_size)

    joined: Any = torch.cat([filled(condition) for condition in rows])  # type: ignore[list-item]
    return joined


def labels_of(condition: Condition) -> torch.Tensor:
    """Returns the class labels of a condition.

    Args:
        condition: A TensorDict with ``label``, of batch size :math:`(B)`.

    Returns:
        The labels, int64, with shape :math:`(B)`.

    Raises:
        ValueError: If the condition has none.
    """
    if condition is None or "label" not in condition:
        raise ValueError("the condition has no 'label'; make it with the teacher's encode()")
    return condition["label"]
