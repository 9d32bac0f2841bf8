"""Checks of tensors that belong together, where broadcasting would hide a mistake."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from pdmd.diffusion.timesteps import as_times
from pdmd.typing import Condition, Latents

__all__ = [
    "check_condition",
    "check_coefficient",
    "check_latents",
    "check_same_shape",
    "check_times",
    "check_transition",
    "inputs_kept",
]


def check_latents(name: str, x: Any) -> None:
    """Checks that a value is a batch of latents.

    Args:
        name: What it is called, for the error.
        x: The value.

    Raises:
        TypeError: If it is not a floating-point tensor.
        ValueError: If it has no batch.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is a tensor of shape (B, *), got {x!r:.60}; pass a torch.Tensor")
    if not x.is_floating_point():
        raise TypeError(
            f"{name} is a floating-point tensor, got {x.dtype}; convert it by .float()"
        )
    if x.ndim == 0:
        raise ValueError(f"{name} has shape (B, *), got a scalar; add a batch, as in x[None]")


def check_condition(condition: Any, batch: int) -> None:
    """Checks that a condition is one, with a row for each sample of a batch.

    Args:
        condition: The condition.
        batch: The number of samples.

    Raises:
        TypeError: If it is neither ``None`` nor a TensorDict.
        ValueError: If it has another batch size.
    """
    if condition is not None and not hasattr(condition, "batch_size"):
        raise TypeError(
            f"a condition is a TensorDict with batch size (B), got {condition!r:.60}; pass what "
            "encode() of the teacher returns, or None"
        )
    size = (batch,) if condition is None else tuple(condition.batch_size)
    if size != (batch,):
        raise ValueError(
            f"the condition has batch size {list(size)} for latents of {batch} samples; give it "
            "one row per sample, as encode() does for one prompt per sample"
        )


def check_same_shape(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Checks that two batches of latents have one shape.

    Args:
        name: What the first is called, for the error.
        x: The first.
        other_name: What the second is called.
        other: The second.

    Raises:
        ValueError: If their shapes differ, even where one would broadcast to the other.
    """
    if x.shape != other.shape:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)} and {other_name} {tuple(other.shape)}; both are "
            "batches of the same samples, so give them one shape (B, *)"
        )


def check_times(name: str, t: Any, batch: int) -> None:
    """Checks that times are one for all samples of a batch or one for each.

    Args:
        name: What they are called, for the error.
        t: A number, or a tensor.
        batch: The number of samples.

    Raises:
        TypeError: If they are neither.
        ValueError: If they are of another shape, or a number outside [0, 1].
    """
    if not isinstance(t, Tensor):
        as_times(t)  # for its errors
    elif t.ndim > 1 or (t.ndim == 1 and len(t) not in (1, batch)):
        raise ValueError(
            f"{name} has shape {tuple(t.shape)} for a batch of {batch}; give one time, or one for "
            f"each sample with shape ({batch},)"
        )


def check_coefficient(name: str, coefficient: Any, batch: int) -> None:
    """Checks that a coefficient is a tensor, one for all samples of a batch or one for each.

    Args:
        name: What it is called, for the error.
        coefficient: The coefficient.
        batch: The number of samples.

    Raises:
        TypeError: If it is not a tensor.
        ValueError: If it is of another shape.
    """
    if not isinstance(coefficient, Tensor):
        raise TypeError(
            f"{name} is a tensor of shape () or (B), got {coefficient!r:.60}; pass "
            "torch.as_tensor(..., dtype=torch.float64)"
        )
    if coefficient.ndim > 1 or (coefficient.ndim == 1 and len(coefficient) not in (1, batch)):
        raise ValueError(
            f"{name} has shape {tuple(coefficient.shape)} for a batch of {batch}; give one "
            f"coefficient, or one for each sample with shape ({batch},)"
        )


def check_transition(x_s: Any, epsilon: Any, s: Any, t: Any) -> None:
    """Checks the latents, noise and times of a transition from one time to another.

    Args:
        x_s: Latents at time ``s``, with shape ``(B, *)``.
        epsilon: Noise, with the shape of ``x_s``.
        s: Starting time, with shape ``()`` or ``(B)``.
        t: Final time, likewise.

    Raises:
        TypeError: If a tensor or a time is something else.
        ValueError: If shapes do not belong together.
    """
    check_latents("x_s", x_s)
    check_latents("epsilon", epsilon)
    check_same_shape("epsilon", epsilon, "x_s", x_s)
    for name, time in (("s", s), ("t", t)):
        check_times(name, time, len(x_s))


@contextmanager
def inputs_kept(x_t: Latents, t: Tensor, condition: Condition) -> Iterator[None]:
    """Checks that a network leaves its inputs as they are within a block.

    They are used again after an evaluation: the prediction is converted by ``x_t`` and ``t``, and
    the other networks are evaluated on them.

    Args:
        x_t: Noisy latents, with shape :math:`(B, *)`.
        t: Times, with shape :math:`(B)`.
        condition: A TensorDict with batch size :math:`(B)`, or ``None``.

    Raises:
        ValueError: If an input was modified in place, or a field of the condition replaced.
    """
    fields = {} if condition is None else dict(condition.items())
    inputs = {"x_t": x_t, "t": t, **{f"condition[{key!r}]": v for key, v in fields.items()}}
    versions = {name: _version(value) for name, value in inputs.items()}
    yield
    changed = [name for name, value in inputs.items() if _version(value) != versions[name]]
    now = {} if condition is None else dict(condition.items())
    changed += [f"condition[{key!r}]" for key in now if now[key] is not fields.get(key)]
    if changed:
        raise ValueError(
            f"the network modifies its input {changed[0]} in place, which others use after it; "
            "compute a new tensor, or clone the input first"
        )


def _version(value: Any) -> int:
    """Returns how often a tensor was modified, 0 of what does not count it."""
    counts = isinstance(value, Tensor) and not value.is_inference()
    return value._version if counts else 0
