r"""Change of schedule: a teacher of one forward process serves a student of another.

Let the teacher know :math:`x'_{t'} = \alpha'_{t'} x_0 + \sigma'_{t'} \varepsilon` and the student
:math:`x_t = \alpha_t x_0 + \sigma_t \varepsilon`. At equal log-SNR, :math:`\lambda'_{t'} =
\lambda_t`, the two are one sample up to scale,

.. math:: x'_{t'} = c \, x_t, \qquad
    c = \sqrt{\frac{\alpha'^2_{t'} + \sigma'^2_{t'}}{\alpha_t^2 + \sigma_t^2}},

so what the teacher says of :math:`x_0` and :math:`\varepsilon` given :math:`c \, x_t` holds given
:math:`x_t`, exactly; scores are related by :math:`\nabla \log p_t(x_t) = c \, \nabla \log
p'_{t'}(c \, x_t)`. Nothing is approximated, so nothing is known beyond the teacher's own noise:
its time range is carried over by the log-SNR. Stable Diffusion's last level is not pure noise, so
on rectified flow it reaches :math:`t = 0.936` and no plan, which starts at 1, can be made for it
there. :class:`~pdmd.diffusion.schedules.Truncated` ends the schedule where the teacher does
(:meth:`WithSchedule.reach`): the same straight paths, with :math:`t = 1` at the teacher's last
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

from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.predictions import Kind, Prediction, combination
from pdmd.diffusion.schedules import RectifiedFlow, Schedule, Truncated
from pdmd.registry import Registry
from pdmd.teachers.base import Teacher
from pdmd.teachers.routed import RoutedTeacher
from pdmd.typing import Condition, Conditions, Latents, expand

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = [
    "ENDS",
    "WithSchedule",
    "DenoiserWithSchedule",
    "equal_snr_time",
    "on_schedule",
    "schedules",
]


class DenoiserWithSchedule(Denoiser):
    """A denoiser on another schedule than its network's.

    Args:
        denoiser: The denoiser, on its own schedule.
        schedule: The schedule wanted.
        kind: The kind of prediction wanted.

    Raises:
        ValueError: If the two schedules share no log-SNR within the denoiser's time range.
    """

    def __init__(self, denoiser: Denoiser, schedule: Schedule, *, kind: Kind = "velocity") -> None:
        super().__init__(
            schedule=schedule,
            kind=kind,
            latent_shape=denoiser.latent_shape,
            time_range=_carried(denoiser, schedule),
        )
        self.denoiser = denoiser
        self.evaluations = denoiser.evaluations

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Rescales, asks the denoiser at its own time, and converts."""
        own_t = equal_snr_time(t, self.schedule, self.denoiser.schedule)
        x = _scale(t, self.schedule, own_t, self.denoiser.schedule, x_t) * x_t
        prediction: Prediction = self.denoiser(x, own_t, condition)
        return prediction.combine(*combination(self.kind, t, self.schedule)).to(x.dtype)

    def trainable_copy(self) -> Denoiser:
        """Returns a trainable copy of the denoiser, on the schedule wanted."""
        return DenoiserWithSchedule(self.denoiser.trainable_copy(), self.schedule, kind=self.kind)

    def part(self, t_start: float, t_end: float) -> Denoiser:
        """Returns what serves the times between two, on the schedule wanted."""
        low, high = self.time_range
        inner = self.denoiser.part(
            *(
                float(
                    equal_snr_time(max(low, min(high, t)), self.schedule, self.denoiser.schedule)
                )
                for t in (t_start, t_end)
            )
        )
        if inner is self.denoiser:
            return self
        return DenoiserWithSchedule(inner, self.schedule, kind=self.kind)


class WithSchedule(Teacher):
    """A teacher on another schedule than its network's, itself a teacher.

    Trainable copies, and with them the student, are on the schedule wanted too. Guide the teacher
    within, ``WithSchedule(Guided(teacher, 4.0), schedule)``: families whose guidance is the
    classical extrapolation give the same either way, and others know their rule in their own kind
    alone.

    Args:
        teacher: The teacher, on its own schedule.
        schedule: The schedule wanted.
        kind: The kind of prediction wanted.

    Raises:
        ValueError: As :class:`DenoiserWithSchedule`.
    """

    def __init__(self, teacher: Teacher, schedule: Schedule, *, kind: Kind = "velocity") -> None:
        on_schedule = DenoiserWithSchedule(teacher, schedule, kind=kind)
        super().__init__(
            schedule=schedule,
            kind=kind,
            latent_shape=teacher.latent_shape,
            time_range=on_schedule.time_range,
        )
        self.converted = on_schedule
        self.evaluations = teacher.evaluations
        decode = getattr(teacher, "decode", None)
        if decode is not None:
            self.decode = decode

    @classmethod
    def reach(
        cls, teacher: Teacher, schedule: Schedule, *, kind: Kind = "velocity"
    ) -> WithSchedule:
        """Makes one on as much of a schedule as the teacher knows.

        Args:
            teacher: As in the class.
            schedule: The schedule wanted; its part up to the teacher's noisiest level is taken
                (:class:`~pdmd.diffusion.schedules.Truncated`), all of it where the teacher knows
                that.
            kind: As in the class.
        """
        _, high = _carried(teacher, schedule)
        return cls(teacher, schedule if high == 1 else Truncated(schedule, high), kind=kind)

    @property
    def teacher(self) -> Teacher:
        """The teacher on its own schedule."""
        teacher: Any = self.converted.denoiser
        return teacher

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Rescales, asks the teacher at its own time, and converts."""
        return self.converted.network(x_t, t, condition)

    def encode(self, prompts: Sequence[Any]) -> Condition:
        """Encodes as the teacher does."""
        return self.teacher.encode(prompts)

    def conditions(self, prompts: Sequence[Any]) -> Conditions | None:
        """Encodes as the teacher does."""
        return self.teacher.conditions(prompts)

    def unconditional(self, condition: TensorDict, null: TensorDict) -> TensorDict:
        """Takes prompts out as the teacher does."""
        return self.teacher.unconditional(condition, null)

    @property
    def prompts(self) -> Sequence[Any]:
        """The teacher's prompts."""
        return self.teacher.prompts

    def guide(
        self, conditional: Latents, unconditional: Latents, scale: float | Tensor
    ) -> Latents:
        """Extrapolates, which the change of schedule leaves as it is.

        Raises:
            ValueError: If the teacher's family has a rule of its own.
        """
        if not self.uses_standard_guidance:
            raise ValueError(
                f"{type(self.teacher).__name__} has a guidance rule of its own, for predictions "
                "of its own kind; guide within: WithSchedule(Guided(teacher, scale), schedule)"
            )
        return super().guide(conditional, unconditional, scale)

    @property
    def uses_standard_guidance(self) -> bool:
        """Whether the teacher's family guides by the classical extrapolation."""
        return _uses_standard_guidance(self.teacher)

    def around(self, teacher: Teacher) -> WithSchedule:
        """Returns another teacher on this one's schedule."""
        return WithSchedule(teacher, self.schedule, kind=self.kind)

    def trainable_copy(self) -> Denoiser:
        """Returns a trainable copy of the teacher, on the schedule wanted."""
        return self.converted.trainable_copy()

    def part(self, t_start: float, t_end: float) -> Denoiser:
        """Returns what serves the times between two, likewise and without guidance."""
        return self.converted.part(t_start, t_end)


def equal_snr_time(t: Tensor | float, schedule: Schedule, own: Schedule) -> Tensor:
    """Returns the time of equal log-SNR on another schedule.

    Args:
        t: Times on ``schedule``, of any shape.
        schedule: The schedule that they are of.
        own: The other.

    Raises:
        ValueError: If the other does not reach the log-SNR.
    """
    return own.t_from_log_snr(schedule.log_snr(t))


def _scale(t: Tensor, schedule: Schedule, own_t: Tensor, own: Schedule, x: Latents) -> Tensor:
    alpha, sigma = schedule(t)
    own_alpha, own_sigma = own(own_t)
    return expand(torch.hypot(own_alpha, own_sigma) / torch.hypot(alpha, sigma), x)


def _carried(denoiser: Denoiser, schedule: Schedule) -> tuple[float, float]:
    """Carries a time range over to another schedule, cut to what that reaches."""
    low, high = (float(denoiser.schedule.log_snr(t)) for t in reversed(denoiser.time_range))
    bottom, top = float(schedule.log_snr(1.0)), float(schedule.log_snr(0.0))
    if high <= bottom or low >= top:
        raise ValueError(
            f"{type(denoiser).__name__} knows log-SNRs in [{low:.4g}, {high:.4g}], and "
            f"{schedule!r} has none of them: it reaches [{bottom:.4g}, {top:.4g}]"
        )

    def near(a: float, b: float) -> bool:
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)

    return (
        0.0 if high >= top or near(high, top) else float(schedule.t_from_log_snr(high)),
        1.0 if low <= bottom or near(low, bottom) else float(schedule.t_from_log_snr(low)),
    )


def _uses_standard_guidance(teacher: Teacher) -> bool:
    if isinstance(teacher, RoutedTeacher):
        return _uses_standard_guidance(teacher.first)
    return type(teacher).guide in (Teacher.guide, WithSchedule.guide)


ENDS = ("noise", "teacher")


def on_schedule(teacher: Teacher, name: str, end: str = "noise") -> Teacher:
    """Puts a teacher on a schedule by name; itself where there is none.

    It then predicts the velocity on rectified flow and v on other schedules.

    Args:
        teacher: The teacher, guided or not.
        name: A registered schedule (:data:`schedules`), or nothing.
        end: Where the schedule ends: at its own noise, or ``"teacher"``, at the teacher's noisiest
            level where the teacher knows no purer noise (:meth:`WithSchedule.reach`).

    Raises:
        ValueError: If there is no such schedule or end.
    """
    if end not in ENDS:
        raise ValueError(f"a schedule ends at {' or '.join(map(repr, ENDS))}, got {end!r}")
    if not name:
        if end != "noise":
            raise ValueError(f"the end {end!r} needs a schedule; {', '.join(schedules)} are known")
        return teacher
    schedule: Schedule = schedules[name]()
    kind: Kind = "velocity" if isinstance(schedule, RectifiedFlow) else "v_prediction"
    make = WithSchedule if end == "noise" else WithSchedule.reach
    return make(teacher, schedule, kind=kind)


schedules: Registry[Any] = Registry(
    "schedule",
    {
        "cosine": "pdmd.diffusion.variance_preserving:CosineVP",
        "linear": "pdmd.diffusion.variance_preserving:LinearVP",
        "rectified_flow": "pdmd.diffusion.schedules:RectifiedFlow",
    },
)
"""Schedules without arguments by name, on which a configuration may put a teacher."""
