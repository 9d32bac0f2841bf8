r"""Teachers of several networks, routed by time, such as Wan 2.2.

.. math:: f(x_t, t, c) = f_{r(t)}(x_t, t, c)

with a router :math:`r` that maps a time to the index of a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from pdmd.arguments import checked
from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.routers import RoutedDenoiser, Router
from pdmd.teachers.base import Teacher
from pdmd.typing import Condition, Conditions, Latents

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = ["RoutedTeacher", "with_router"]


@checked
class RoutedTeacher(Teacher):
    """Teachers of one family behind a router.

    The first teacher encodes prompts, applies guidance and decodes.

    Args:
        teachers: The teachers, on one schedule; noisiest first.
        router: Maps times to indices of the teachers.

    Attributes:
        routed: The teachers as one routed denoiser.

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
        """The teacher of the noisiest times."""
        first: Any = self.routed.denoisers[0]
        return first

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates each sample with the teacher of its time."""
        return self.routed.network(x_t, t, condition)

    def encode(self, prompts: Sequence[Any]) -> Condition:
        """Encodes prompts with the first teacher."""
        return self.first.encode(prompts)

    def encode_negative(self, text: str) -> Condition:
        """Encodes a text with the first network's teacher."""
        return self.first.encode_negative(text)

    def conditions(self, prompts: Sequence[Any]) -> Conditions | None:
        """Encodes prompts with the first teacher."""
        return self.first.conditions(prompts)

    def with_size(self, **sizes: int) -> RoutedTeacher:
        """Returns the teachers of another size behind the same router."""
        resized = [cast(Teacher, part).with_size(**sizes) for part in self.routed.denoisers]
        return RoutedTeacher(resized, self.routed.router)

    @property
    def prompts(self) -> Sequence[Any]:
        """The prompts of the first teacher."""
        return self.first.prompts

    def guide(
        self, conditional: Latents, unconditional: Latents, scale: float | Tensor
    ) -> Latents:
        """Applies the guidance rule of the first teacher."""
        return self.first.guide(conditional, unconditional, scale)

    def unconditional(self, condition: TensorDict, null: TensorDict) -> TensorDict:
        """Returns the first teacher's unconditional counterpart of conditions."""
        return self.first.unconditional(condition, null)

    @property
    def switches(self) -> tuple[float, ...]:
        """The boundaries between the networks."""
        return self.routed.switches

    def trainable_copy(self) -> Denoiser:
        """Returns a routed denoiser of trainable copies of all networks."""
        return self.routed.trainable_copy()

    def part(self, t_start: float, t_end: float) -> Denoiser:
        """Returns the network between two times; the routed denoiser if several serve them."""
        return self.routed.part(t_start, t_end)


def with_router(teacher: Teacher, router: Router) -> RoutedTeacher:
    """Returns a teacher of several networks behind another router.

    For networks whose boundary their folder does not state, or states otherwise than they were
    trained; the networks are shared, not copied.

    Args:
        teacher: A teacher of several networks.
        router: Maps times to their indices, noisiest first.

    Raises:
        ValueError: If the teacher has one network, or an interval router has another number of
            intervals.
    """
    if not isinstance(teacher, RoutedTeacher):
        raise ValueError(
            f"a router needs a teacher of several networks, but {type(teacher).__name__} has one; "
            "leave the router out"
        )
    routed = RoutedTeacher(cast("list[Teacher]", list(teacher.routed.denoisers)), router)
    routed.shift = teacher.shift
    decode = getattr(teacher, "decode", None)
    if decode is not None:
        routed.decode = decode
    return routed
