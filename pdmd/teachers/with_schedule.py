r"""A teacher on another schedule: an exact change of the forward process.

Let the teacher be trained on :math:`x'_{t'} = \alpha'_{t'} x_0 + \sigma'_{t'} \varepsilon`, and
let :math:`x_t = \alpha_t x_0 + \sigma_t \varepsilon` be the forward process of the student. At
equal log-SNR, :math:`\lambda'_{t'} = \lambda_t`, the two differ by a scale,

.. math:: x'_{t'} = c \, x_t, \qquad
    c = \sqrt{\frac{\alpha'^2_{t'} + \sigma'^2_{t'}}{\alpha_t^2 + \sigma_t^2}},

so :math:`\mathbb E[x_0 | x_t]` and :math:`\mathbb E[\varepsilon | x_t]` are the teacher's at
:math:`(c \, x_t, t')`, and scores are related by :math:`\nabla \log p_t(x_t) = c \, \nabla \log
p'_{t'}(c \, x_t)`. The change is exact; it does not extrapolate beyond the noise levels of the
teacher, whose time range is mapped by log-SNR.

The noisiest level of Stable Diffusion is not pure noise: on rectified flow it maps to
:math:`t = 0.936`, and a phase plan, which starts at :math:`t = 1`, is outside this range.
:meth:`WithSchedule.reach` ends the schedule at the noisiest level of the teacher
(:class:`~pdmd.diffusion.schedules.Truncated`): the same straight paths, with :math:`t = 1` at that
level.

References:
    Karras et al., EDM, arXiv:2206.00364, Appendix C.
    Kingma et al., Variational Diffusion Models, arXiv:2107.00630, Section 5.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pdmd.arguments import checked
from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.predictions import Kind, Prediction, combination
from pdmd.diffusion.routers import RoutedDenoiser
from pdmd.diffusion.schedules import RectifiedFlow, Schedule, Truncated
from pdmd.diffusion.time_intervals import current_interval, within
from pdmd.registry import Registry
from pdmd.teachers.base import Teacher
from pdmd.teachers.routed import RoutedTeacher
from pdmd.typing import Condition, Conditions, Latents, expand

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = [
    "ENDS",
    "DenoiserWithSchedule",
    "WithSchedule",
    "equal_snr_time",
    "on_schedule",
    "schedules",
]


class DenoiserWithSchedule(Denoiser):
    """A denoiser on another schedule than that of its network.

    Args:
        denoiser: The denoiser, on the schedule of its training.
        schedule: The schedule to convert to.
        kind: The kind of prediction to convert to.

    Raises:
        ValueError: If ``schedule`` has no log-SNR within the denoiser's time range.

    References:
        Karras et al., EDM, arXiv:2206.00364, Appendix C.
    """

    def __init__(self, denoiser: Denoiser, schedule: Schedule, *, kind: Kind = "velocity") -> None:
        super().__init__(
            schedule=schedule,
            kind=kind,
            latent_shape=denoiser.latent_shape,
            time_range=_time_range_on(schedule, denoiser),
        )
        self.denoiser = denoiser
        self.evaluations = denoiser.evaluations
        self._switches = _switches_on(schedule, denoiser)
        self._routed = any(isinstance(module, RoutedDenoiser) for module in denoiser.modules())

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates the denoiser on the rescaled latents at the time of equal log-SNR."""
        inner_t = equal_snr_time(t, self.schedule, self.denoiser.schedule)
        interval = current_interval() if self._routed else None
        if interval is not None:
            ends = (equal_snr_time(end, self.schedule, self.denoiser.schedule) for end in interval)
            inner_t = within(inner_t, *(float(end) for end in ends))
        x = _scale(t, self.schedule, inner_t, self.denoiser.schedule, x_t) * x_t
        prediction: Prediction = self.denoiser(x, inner_t, condition)
        return prediction.combine(*combination(self.kind, t, self.schedule)).to(x.dtype)

    @property
    def switches(self) -> tuple[float, ...]:
        """The times at which the denoiser switches between networks, on this schedule."""
        return self._switches

    def trainable_copy(self) -> Denoiser:
        """Returns a trainable copy of the denoiser, on this schedule."""
        return DenoiserWithSchedule(self.denoiser.trainable_copy(), self.schedule, kind=self.kind)

    def part(self, t_start: float, t_end: float) -> Denoiser:
        """Returns the network between two times, on this schedule."""
        low, high = self.time_range
        start, end = (
            float(equal_snr_time(max(low, min(high, t)), self.schedule, self.denoiser.schedule))
            for t in (t_start, t_end)
        )
        inner = self.denoiser.part(start, end)
        if inner is self.denoiser:
            return self
        return DenoiserWithSchedule(inner, self.schedule, kind=self.kind)


@checked
class WithSchedule(Teacher):
    """A teacher on another schedule than that of its network.

    Trainable copies, and hence the student, are on the new schedule too. Apply guidance inside,
    ``WithSchedule(Guided(teacher, 4.0), schedule)``: for standard guidance, which is linear, the
    order does not matter, but a family with another rule defines it for its own kind of
    prediction only.

    Args:
        teacher: The teacher, on the schedule of its training, guided or not.
        schedule: The schedule to convert to.
        kind: The kind of prediction to convert to.

    Raises:
        ValueError: As :class:`DenoiserWithSchedule`.
    """

    def __init__(self, teacher: Teacher, schedule: Schedule, *, kind: Kind = "velocity") -> None:
        converted = DenoiserWithSchedule(teacher, schedule, kind=kind)
        super().__init__(
            schedule=schedule,
            kind=kind,
            latent_shape=teacher.latent_shape,
            time_range=converted.time_range,
        )
        self.converted = converted
        self.evaluations = teacher.evaluations
        decode = getattr(teacher, "decode", None)
        if decode is not None:
            self.decode = decode

    @classmethod
    def reach(
        cls, teacher: Teacher, schedule: Schedule, *, kind: Kind = "velocity"
    ) -> WithSchedule:
        """Converts to a schedule truncated at the noisiest level of the teacher.

        Args:
            teacher: The teacher, on the schedule of its training, guided or not.
            schedule: The schedule to convert to. It is truncated
                (:class:`~pdmd.diffusion.schedules.Truncated`) unless the teacher covers it up to
                :math:`t = 1`.
            kind: The kind of prediction to convert to.

        Returns:
            A teacher whose time range ends at :math:`t = 1`.

        Raises:
            ValueError: As :class:`DenoiserWithSchedule`.
        """
        _, high = _time_range_on(schedule, teacher)
        return cls(teacher, schedule if high == 1 else Truncated(schedule, high), kind=kind)

    @property
    def teacher(self) -> Teacher:
        """The teacher, on the schedule of its training."""
        teacher: Any = self.converted.denoiser
        return teacher

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates the teacher on the rescaled latents at the time of equal log-SNR."""
        return self.converted.network(x_t, t, condition)

    def encode(self, prompts: Sequence[Any]) -> Condition:
        """Encodes prompts with the wrapped teacher."""
        return self.teacher.encode(prompts)

    def conditions(self, prompts: Sequence[Any]) -> Conditions | None:
        """Encodes prompts with the wrapped teacher."""
        return self.teacher.conditions(prompts)

    def unconditional(self, condition: TensorDict, null: TensorDict) -> TensorDict:
        """Returns the wrapped teacher's unconditional counterpart of conditions."""
        return self.teacher.unconditional(condition, null)

    @property
    def prompts(self) -> Sequence[Any]:
        """The prompts of the wrapped teacher."""
        return self.teacher.prompts

    def guide(
        self, conditional: Latents, unconditional: Latents, scale: float | Tensor
    ) -> Latents:
        """Applies standard guidance, with which the change of schedule commutes.

        Raises:
            ValueError: If the family of the teacher has another guidance rule.
        """
        if not self.uses_standard_guidance:
            raise ValueError(
                f"{type(self.teacher).__name__} defines guidance for its own schedule and kind of "
                "prediction only; apply it inside: WithSchedule(Guided(teacher, scale), schedule)"
            )
        return super().guide(conditional, unconditional, scale)

    @property
    def uses_standard_guidance(self) -> bool:
        """Whether the guidance rule of the teacher is the default of :class:`Teacher`."""
        return _uses_standard_guidance(self.teacher)

    def around(self, teacher: Teacher) -> WithSchedule:
        """Returns another teacher, on this schedule and with this kind of prediction."""
        return WithSchedule(teacher, self.schedule, kind=self.kind)

    @property
    def switches(self) -> tuple[float, ...]:
        """The times at which the teacher switches between networks, on this schedule."""
        return self.converted.switches

    def trainable_copy(self) -> Denoiser:
        """Returns a trainable copy of the teacher without guidance, on this schedule."""
        return self.converted.trainable_copy()

    def part(self, t_start: float, t_end: float) -> Denoiser:
        """Returns the network between two times without guidance, on this schedule."""
        return self.converted.part(t_start, t_end)


def equal_snr_time(t: Tensor | float, schedule: Schedule, other: Schedule) -> Tensor:
    r"""Returns the time of equal log-SNR on another schedule.

    .. math:: t' = \lambda'^{-1}(\lambda_t)

    Args:
        t: Times on ``schedule``, of any shape.
        schedule: The schedule of :math:`t`.
        other: The schedule of the result :math:`t'`.

    Returns:
        Times on ``other``, in float64, with the shape of :math:`t`.

    Raises:
        ValueError: If a log-SNR is outside the range of ``other``.
    """
    return other.t_from_log_snr(schedule.log_snr(t))


def _scale(t: Tensor, schedule: Schedule, other_t: Tensor, other: Schedule, x: Latents) -> Tensor:
    alpha, sigma = schedule(t)
    other_alpha, other_sigma = other(other_t)
    return expand(torch.hypot(other_alpha, other_sigma) / torch.hypot(alpha, sigma), x)


def _time_range_on(schedule: Schedule, denoiser: Denoiser) -> tuple[float, float]:
    """Maps the time range of a denoiser to a schedule by log-SNR, clipped to its range."""
    low, high = (float(denoiser.schedule.log_snr(t)) for t in reversed(denoiser.time_range))
    bottom, top = float(schedule.log_snr(1.0)), float(schedule.log_snr(0.0))
    if high <= bottom or low >= top:
        raise ValueError(
            f"{type(denoiser).__name__} is defined for log-SNRs in [{low:.4g}, {high:.4g}], which "
            f"{schedule!r} does not contain: its log-SNRs are in [{bottom:.4g}, {top:.4g}]"
        )

    def near(a: float, b: float) -> bool:
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)

    return (
        0.0 if high >= top or near(high, top) else float(schedule.t_from_log_snr(high)),
        1.0 if low <= bottom or near(low, bottom) else float(schedule.t_from_log_snr(low)),
    )


def _switches_on(schedule: Schedule, denoiser: Denoiser) -> tuple[float, ...]:
    """Maps the switches of a denoiser to a schedule by log-SNR, without those outside of it."""
    bottom, top = float(schedule.log_snr(1.0)), float(schedule.log_snr(0.0))
    levels = (float(denoiser.schedule.log_snr(t)) for t in denoiser.switches)
    return tuple(float(schedule.t_from_log_snr(v)) for v in levels if bottom < v < top)


def _uses_standard_guidance(teacher: Teacher) -> bool:
    if isinstance(teacher, RoutedTeacher):
        return _uses_standard_guidance(teacher.first)
    return type(teacher).guide in (Teacher.guide, WithSchedule.guide)


ENDS = ("noise", "teacher")
"""Where a schedule may end: see :func:`on_schedule`."""


def on_schedule(teacher: Teacher, name: str, end: str = "noise") -> Teacher:
    """Converts a teacher to a registered schedule.

    It then predicts the velocity on rectified flow, and v on other schedules.

    Args:
        teacher: The teacher, guided or not.
        name: Name of the schedule (:data:`schedules`); empty to keep the teacher's own.
        end: End of the schedule: ``"noise"`` for the full schedule, or ``"teacher"`` to truncate
            it at the noisiest level of the teacher (:meth:`WithSchedule.reach`).

    Returns:
        The teacher on the schedule, or ``teacher`` itself if ``name`` is empty.

    Raises:
        ValueError: If the name or the end is unknown, or an end is given without a name.
    """
    if end not in ENDS:
        raise ValueError(f"schedule end must be {' or '.join(map(repr, ENDS))}, got {end!r}")
    if not name:
        if end != "noise":
            raise ValueError(
                f"the schedule end {end!r} needs a schedule; name one of {', '.join(schedules)}"
            )
        return teacher
    schedule: Schedule = schedules[name]()
    kind: Kind = "velocity" if isinstance(schedule, RectifiedFlow) else "v_prediction"
    convert = WithSchedule if end == "noise" else WithSchedule.reach
    return convert(teacher, schedule, kind=kind)


schedules: Registry[Any] = Registry(
    "schedule",
    {
        "cosine": "pdmd.diffusion.variance_preserving:CosineVP",
        "linear": "pdmd.diffusion.variance_preserving:LinearVP",
        "rectified_flow": "pdmd.diffusion.schedules:RectifiedFlow",
    },
)
"""Schedules by name, built without arguments, for configurations."""
