r"""Classifier-free guidance: a wrapper of a teacher that is itself a teacher.

.. math:: f_g(x_t, t, c) = f(x_t, t, \varnothing) + g \, (f(x_t, t, c) - f(x_t, t, \varnothing))

A model family may override this rule in its :meth:`~pdmd.teachers.base.Teacher.guide`. Within an
interval of times only, guidance keeps more of the diversity; outside of it :math:`g = 1`.

References:
    Ho and Salimans, Classifier-Free Diffusion Guidance, arXiv:2207.12598, Eq. 6.
    Kynkäänniemi et al., Applying Guidance in a Limited Interval, arXiv:2404.07724.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pdmd.arguments import checked
from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.modes import evaluation_mode
from pdmd.teachers.base import Teacher
from pdmd.teachers.conditioning.text_lengths import trimmed, with_lengths
from pdmd.teachers.routed import RoutedTeacher
from pdmd.teachers.with_schedule import WithSchedule
from pdmd.typing import Condition, Conditions, Latents, expand, join_conditions, moved

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = ["Guided", "guided", "unguided"]

JOINED_ROWS = 32
"""Rows up to which both evaluations of a network that is not sharded are one call.

Few rows leave an accelerator idle; many fill it either way, and two calls need half the memory.
"""


@checked
class Guided(Teacher):
    r"""A teacher under classifier-free guidance.

    Both evaluations run as one batch, unless texts have a mask or the null condition another
    shape: then they run one after the other, each padded to its own longest text only. So do more
    than ``JOINED_ROWS`` rows, for memory, but on a sharded network, which is gathered once for
    one call: there the choice depends on the teacher alone, so that all ranks agree. With
    ``scale=1`` the teacher is evaluated once, and with ``condition=None`` its unconditional
    prediction is returned.

    Args:
        teacher: The teacher to guide.
        scale: The guidance scale :math:`g`; 1 for no guidance. For a
            :class:`~pdmd.teachers.routed.RoutedTeacher`, optionally one scale per network,
            noisiest first.
        null: The null condition :math:`\varnothing`, with batch size :math:`(1)`;
            ``teacher.encode([None])`` if ``None``.
        interval: The lowest and highest time with guidance; all by default. Outside of it the
            conditional prediction is returned, but both are evaluated: the times of a batch may
            differ, and asking for them would wait for the device.

    Raises:
        ValueError: If a scale is not finite, the interval is not within [0, 1], the number of
            scales does not match the number of networks, or the teacher is unconditional.

    References:
        Ho and Salimans, Classifier-Free Diffusion Guidance, arXiv:2207.12598, Eq. 6.
    """

    def __init__(
        self,
        teacher: Teacher,
        scale: float | Sequence[float],
        null: Condition = None,
        *,
        interval: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__(
            schedule=teacher.schedule,
            kind=teacher.kind,
            latent_shape=teacher.latent_shape,
            time_range=teacher.time_range,
        )
        scales = (scale,) if isinstance(scale, int | float) else tuple(scale)
        for g in scales:
            if not math.isfinite(g):
                raise ValueError(f"a guidance scale must be finite, got {g}")
        if not 0 <= interval[0] < interval[1] <= 1:
            raise ValueError(
                f"an interval of guidance is two increasing times in [0, 1], got {interval}"
            )
        networks = len(teacher.routed.denoisers) if isinstance(teacher, RoutedTeacher) else 1
        if len(scales) not in (1, networks):
            raise ValueError(
                f"got {len(scales)} guidance scales for a {type(teacher).__name__} of {networks} "
                "networks; pass one scale, or one per network"
            )
        self.teacher = teacher
        self.scales = tuple(float(g) for g in scales)
        self.interval = (float(interval[0]), float(interval[1]))
        self.shift = teacher.shift
        self.evaluations = teacher.evaluations * (2 if self.guides else 1)
        self.null = null
        if null is None and self.guides:
            with evaluation_mode(teacher), torch.no_grad():
                self.null = teacher.encode([None])
        if self.null is None and self.guides:
            raise ValueError(
                f"{type(teacher).__name__} takes no conditions, so it cannot be guided; "
                "use scale=1"
            )
        if self.null is not None:
            self.null = trimmed(with_lengths(self.null))

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates the conditional and unconditional prediction, and guides."""
        if not self.guides:
            return self.teacher.network(x_t, t, condition)
        if self.null is None or condition is None:  # the two predictions would be equal
            return self.teacher.network(x_t, t, None)
        null = self.teacher.unconditional(condition, self.null.to(x_t.device, non_blocking=True))
        sharded = hasattr(self, "unshard")  # by fully_shard: the choice is that of all ranks
        if (len(x_t) > JOINED_ROWS and not sharded) or _padded(null, condition):
            unconditional = self.teacher.network(x_t, t, null)
            conditional = self.teacher.network(x_t, t, condition)
        else:
            both = join_conditions(null, condition)
            value = self.teacher.network(torch.cat([x_t, x_t]), torch.cat([t, t]), both)
            unconditional, conditional = value.chunk(2)
        return self.teacher.guide(conditional, unconditional, self._scale(t, x_t))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Guided:
        super()._apply(fn, recurse)
        if self.null is not None:  # moved like a buffer, so that no evaluation waits for a copy
            self.null = self.null.apply(fn, device=None)
        return self

    def unconditional(self, condition: TensorDict, null: TensorDict) -> TensorDict:
        """Returns the wrapped teacher's unconditional counterpart of conditions."""
        return self.teacher.unconditional(condition, null)

    def encode(self, prompts: Sequence[Any]) -> Condition:
        """Encodes prompts with the wrapped teacher."""
        return self.teacher.encode(prompts)

    def conditions(self, prompts: Sequence[Any]) -> Conditions | None:
        """Encodes prompts with the wrapped teacher."""
        return self.teacher.conditions(prompts)

    @property
    def prompts(self) -> Sequence[Any]:
        """The prompts of the wrapped teacher."""
        return self.teacher.prompts

    @property
    def switches(self) -> tuple[float, ...]:
        """The times at which the wrapped teacher switches between networks."""
        return self.teacher.switches

    def trainable_copy(self) -> Denoiser:
        """Returns a trainable copy without guidance: the student learns the guided prediction."""
        return self.teacher.trainable_copy()

    def part(self, t_start: float, t_end: float) -> Denoiser:
        """Returns the wrapped teacher's network between two times, without guidance."""
        return self.teacher.part(t_start, t_end)

    @property
    def guides(self) -> bool:
        """Whether any scale differs from 1."""
        return any(g != 1 for g in self.scales)

    def _scale(self, t: Tensor, x_t: Latents) -> float | Tensor:
        whole = self.interval == (0.0, 1.0)
        if len(self.scales) == 1 and whole:
            return self.scales[0]
        scale = moved(torch.tensor(self.scales, dtype=torch.float64), t.device)
        if len(self.scales) > 1 and isinstance(self.teacher, RoutedTeacher):
            scale = scale[self.teacher.routed.router(t)]
        if not whole:
            low, high = self.interval
            scale = torch.where((t >= low) & (t <= high), scale, 1.0)
        return expand(scale, x_t)


def _padded(null: TensorDict, condition: TensorDict) -> bool:
    """Returns whether joining two conditions would pad texts."""
    shapes = [
        {key: value.shape[1:] for key, value in c.items() if isinstance(value, Tensor)}
        for c in (null, condition)
    ]
    return "mask" in shapes[1] or shapes[0] != shapes[1]


@checked
def guided(
    teacher: Teacher,
    scales: float | Sequence[float],
    *,
    negative_prompt: str = "",
    interval: tuple[float, float] = (0.0, 1.0),
) -> Teacher:
    """Wraps a teacher in :class:`Guided` unless every scale is 1.

    Args:
        teacher: The teacher.
        scales: One scale, or one per network, as for :class:`Guided`.
        negative_prompt: The text that guidance leads away from, in the place of no prompt.
        interval: The lowest and highest time with guidance.

    Returns:
        The guided teacher, or ``teacher`` itself.

    Raises:
        ValueError: As :class:`Guided`, or if there is a negative prompt and no guidance.
    """
    if not negative_prompt:
        wrapped = Guided(teacher, scales, interval=interval)
        return wrapped if wrapped.guides else teacher
    null = teacher.encode_negative(negative_prompt)
    wrapped = Guided(teacher, scales, null=null, interval=interval)
    if not wrapped.guides:
        raise ValueError(
            f"the negative prompt {negative_prompt!r:.60} has no effect without guidance; give a "
            "guidance scale other than 1, or leave it out"
        )
    return wrapped


def unguided(teacher: Teacher) -> Teacher:
    """Returns the innermost teacher, without guidance or change of schedule."""
    while isinstance(teacher, Guided | WithSchedule):
        teacher = teacher.teacher
    return teacher
