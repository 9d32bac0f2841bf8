"""A teacher of several networks, each for its share of the noise, such as Wan 2.2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.routers import RoutedDenoiser, Router
from pdmd.teachers.base import Teacher
from pdmd.typing import Condition, Conditions, Latents

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = ["RoutedTeacher"]


class RoutedTeacher(Teacher):
    """Teachers of one family behind a router, seen as one.

    The first of them encodes prompts, combines guided predictions and decodes.

    Args:
        teachers: The teachers, of one schedule; noisiest first.
        router: Chooses among them.

    Attributes:
        routed: Their routed denoiser.

    Raises:
        ValueError: As :class:`~pdmd.diffusion.routers.RoutedDenoiser`.
    """

    def __init__(self, teachers: Sequence[Teacher], router: Router) -> None:
        routed = RoutedDenoiser(teachers, router)
        super().__init__(
            schedule=routed.schedule,
            kind=routed.kind,
            latent_shape=routed.latent_shape,
            time_range=routed.time_range,
        )
        self.routed = routed
        self.shift = teachers[0].shift
        decode = getattr(teachers[0], "decode", None)
        if decode is not None:
            self.decode = decode

    @property
    def first(self) -> Teacher:
        """The noisiest teacher."""
        first: Any = self.routed.denoisers[0]
        return first

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates each sample with the teacher of its time."""
        return self.routed.network(x_t, t, condition)

    def encode(self, prompts: Sequence[Any]) -> Condition:
        """Encodes as the first teacher does."""
        return self.first.encode(prompts)

    def conditions(self, prompts: Sequence[Any]) -> Conditions | None:
        """Encodes as the first teacher does."""
        return self.first.conditions(prompts)

    @property
    def prompts(self) -> Sequence[Any]:
        """The first teacher's prompts."""
        return self.first.prompts

    def guide(
        self, conditional: Latents, unconditional: Latents, scale: float | Tensor
    ) -> Latents:
        """Combines as the first teacher does."""
        return self.first.guide(conditional, unconditional, scale)

    def unconditional(self, condition: TensorDict, null: TensorDict) -> TensorDict:
        """Takes prompts out as the first teacher does."""
        return self.first.unconditional(condition, null)

    def trainable_copy(self) -> Denoiser:
        """Returns a routed denoiser of trainable copies."""
        return self.routed.trainable_copy()

    def part(self, t_start: float, t_end: float) -> Denoiser:
        """Returns the one network between two times, the routed one if there are several."""
        return self.routed.part(t_start, t_end)
