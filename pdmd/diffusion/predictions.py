r"""Predictions of a denoising network, in any of their equivalent kinds.

Every kind is a linear combination :math:`c_x x_0 + c_\varepsilon \varepsilon` of the clean sample
and the noise:

=============  =====================  ============================
kind           :math:`c_x`            :math:`c_\varepsilon`
=============  =====================  ============================
x0             1                      0
epsilon        0                      1
velocity       :math:`\dot\alpha_t`   :math:`\dot\sigma_t`
v_prediction   :math:`-\sigma_t`      :math:`\alpha_t`
score          0                      :math:`-1 / \sigma_t`
=============  =====================  ============================

With :math:`x_t = \alpha_t x_0 + \sigma_t \varepsilon` and :math:`D = \alpha_t c_\varepsilon -
\sigma_t c_x`, a value :math:`y` with coefficients :math:`(c_x, c_\varepsilon)` becomes the
combination with coefficients :math:`(c'_x, c'_\varepsilon)` in one step, without passing through
:math:`x_0` or :math:`\varepsilon`:

.. math:: y' = \frac{(c'_x c_\varepsilon - c'_\varepsilon c_x)\, x_t + D'\, y}{D}.

This module is the only one that converts between kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pdmd.arguments import check_instance
from pdmd.diffusion.checks import (
    check_coefficient,
    check_latents,
    check_same_shape,
    check_times,
)
from pdmd.diffusion.schedules import Schedule
from pdmd.diffusion.timesteps import as_times, cached_at
from pdmd.typing import Latents, Times, expand

__all__ = ["KINDS", "Kind", "Prediction", "check_kind", "combination", "determinant"]

Kind = Literal["x0", "epsilon", "velocity", "v_prediction", "score"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def check_kind(kind: str) -> Kind:
    """Returns ``kind``, checked.

    Raises:
        ValueError: If it is not one of ``KINDS``.
    """
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"unknown prediction kind {kind!r}; choose one of {', '.join(KINDS)}")
    return kind  # type: ignore[return-value]


def combination(kind: Kind, t: Times, schedule: Schedule) -> tuple[Tensor, Tensor]:
    r"""Returns the coefficients :math:`(c_x, c_\varepsilon)` of a kind, in float64.

    Args:
        kind: The kind.
        t: Times in [0, 1], of any shape.
        schedule: The forward process.

    Returns:
        Both coefficients, with the shape of ``t``.

    Raises:
        ValueError: If the kind is unknown.
    """
    check_instance("schedule", schedule, Schedule)
    kind = check_kind(kind)
    if kind == "velocity":
        return schedule.derivatives(t)
    alpha_t, sigma_t = schedule(t)
    match kind:
        case "x0":
            return torch.ones_like(alpha_t), torch.zeros_like(alpha_t)
        case "epsilon":
            return torch.zeros_like(alpha_t), torch.ones_like(alpha_t)
        case "v_prediction":
            return -sigma_t, alpha_t
        case "score":
            return torch.zeros_like(alpha_t), -1 / sigma_t


def determinant(kind: Kind, t: Times, schedule: Schedule) -> Tensor:
    r"""Returns :math:`D = \alpha_t c_\varepsilon - \sigma_t c_x` of a kind, in float64.

    At equal :math:`x_t`, the difference of two predictions of kind A times :math:`D_B / D_A` is
    their difference in kind B. Takes the arguments of :func:`combination` and raises its errors.
    """
    check_instance("schedule", schedule, Schedule)
    alpha_t, sigma_t = schedule(t)
    c_x, c_eps = combination(kind, t, schedule)
    return alpha_t * c_eps - sigma_t * c_x


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """The output of a denoising network, convertible to every kind.

    Attributes:
        value: The network's output, with shape :math:`(B, *)`.
        kind: The kind of ``value``.
        x_t: The network's input, with shape :math:`(B, *)`.
        t: The times of ``x_t``: a float, or a tensor with shape :math:`()` or :math:`(B)`.
        schedule: The forward process of ``x_t``.

    Raises:
        TypeError: If a tensor, a time or the schedule has the wrong type.
        ValueError: If the kind is unknown, or shapes do not belong together.
    """

    value: Latents
    kind: Kind
    x_t: Latents
    t: Times
    schedule: Schedule

    def __post_init__(self) -> None:
        check_kind(self.kind)
        check_latents("the prediction's value", self.value)
        check_latents("x_t", self.x_t)
        check_same_shape("the prediction's value", self.value, "x_t", self.x_t)
        check_times("t", self.t, len(self.x_t))
        if not isinstance(self.schedule, Schedule):
            raise TypeError(
                f"a prediction's schedule is a Schedule, got {self.schedule!r:.60}; pass one such "
                "as RectifiedFlow()"
            )

    def detached(self) -> Prediction:
        """Returns the prediction without the gradient of its value."""
        value = self.value.detach()
        return _unflatten((value, self.x_t, self.t), (self.kind, self.schedule))

    def to(self, kind: Kind) -> Latents:
        r"""Returns the prediction as another kind.

        Some conversions do not exist at :math:`t = 0` or 1, such as :math:`x_0` from
        :math:`\varepsilon` where :math:`\alpha_t = 0`; the result is then not finite.

        Args:
            kind: The kind to convert to.

        Returns:
            The prediction as ``kind``, with shape :math:`(B, *)`, in float32 or wider.

        Raises:
            ValueError: If ``kind`` is unknown.
        """
        if check_kind(kind) == self.kind:
            return self.value.to(torch.promote_types(self.value.dtype, torch.float32))
        if {kind, self.kind} == {"epsilon", "score"}:
            _, sigma_t = self.schedule(self.t)
            factor = -1 / sigma_t if kind == "score" else -sigma_t
            return expand(factor, self.value) * self.value
        return self.combine_at(("kind", kind), lambda t: combination(kind, t, self.schedule))

    def combine(self, c_x: Tensor, c_eps: Tensor) -> Latents:
        r"""Returns :math:`c_x \hat x_0 + c_\varepsilon \hat\varepsilon`.

        Args:
            c_x: Coefficient of the clean sample, float64, with shape :math:`()` or :math:`(B)`.
            c_eps: Coefficient of the noise, float64, with shape :math:`()` or :math:`(B)`.

        Returns:
            The combination, with shape :math:`(B, *)`, in float32 or wider.

        Raises:
            TypeError: If a weight is not a tensor.
            ValueError: If it is of another shape.
        """
        check_coefficient("c_x", c_x, len(self.x_t))
        check_coefficient("c_eps", c_eps, len(self.x_t))
        return self._combine(*self._coefficients(as_times(self.t), c_x, c_eps))

    def combine_at(
        self, key: Hashable, coefficients: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> Latents:
        r"""Returns :meth:`combine` of coefficients that depend on the times and a key alone.

        They are computed once for all predictions at the same tensor of times.

        Args:
            key: What the coefficients depend on beside schedule and times.
            coefficients: Computes :math:`(c_x, c_\varepsilon)` from the times, in float64, with
                shape :math:`()` or :math:`(B)`.

        Returns:
            The combination, with shape :math:`(B, *)`, in float32 or wider.
        """
        t = as_times(self.t)
        of_x_t, of_value = cached_at(
            t,
            self.schedule,
            (self.kind, key),
            lambda: self._coefficients(t, *coefficients(t)),
        )
        return self._combine(of_x_t, of_value)

    def _coefficients(self, t: Tensor, c_x: Tensor, c_eps: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the coefficients of :math:`x_t` and of the value in a combination."""
        alpha_t, sigma_t = self.schedule(t)
        if self.kind == "score":  # as epsilon, whose coefficients are finite at t = 0
            own_x, own_eps = torch.zeros_like(alpha_t), torch.ones_like(alpha_t)
        else:
            own_x, own_eps = combination(self.kind, t, self.schedule)
        own_determinant = alpha_t * own_eps - sigma_t * own_x
        return (
            (c_x * own_eps - c_eps * own_x) / own_determinant,
            (alpha_t * c_eps - sigma_t * c_x) / own_determinant,
        )

    def _combine(self, of_x_t: Tensor, of_value: Tensor) -> Latents:
        value = self.to("epsilon") if self.kind == "score" else self.value
        return expand(of_x_t, self.x_t) * self.x_t + expand(of_value, value) * value


def _flatten(prediction: Prediction) -> tuple[list[Any], tuple[Kind, Schedule]]:
    return [prediction.value, prediction.x_t, prediction.t], (prediction.kind, prediction.schedule)


def _unflatten(children: Iterable[Any], context: tuple[Kind, Schedule]) -> Prediction:
    (value, x_t, t), (kind, schedule) = children, context
    made = object.__new__(Prediction)  # its leaves may be anything that a tree holds
    for name, leaf in zip(
        ("value", "kind", "x_t", "t", "schedule"), (value, kind, x_t, t, schedule), strict=True
    ):
        object.__setattr__(made, name, leaf)
    return made


# Sharded networks hook the tensors in the output of a forward pass, found by pytree.
pytree.register_pytree_node(
    Prediction, _flatten, _unflatten, serialized_type_name="pdmd.diffusion.predictions.Prediction"
)
