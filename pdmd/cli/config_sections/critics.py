"""Critics in a configuration: one set of critics, shared by the terms that name the same.

In Python the adversarial term and the discriminator loss take one object. In a configuration they
share their critics by naming equal tables, ``[objective.critic]`` where they name none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from pdmd.cli.composition import Composer, keys_of
from pdmd.cli.values import inline_toml, short
from pdmd.diffusion.denoisers import Denoiser
from pdmd.distillation.phases import Phase
from pdmd.objectives.base import Models
from pdmd.objectives.critics import Critic, Critics
from pdmd.teachers.guided import unguided
from pdmd.typing import Condition, Latents

__all__ = ["ConfiguredCritic", "PhaseCritic", "SharedCritics"]


class ConfiguredCritic:
    """Builds a registered critic for each phase.

    Of ``example``, ``dim`` and ``classes`` the critic receives those that its constructor names:
    an example condition, the number of dimensions of a sample and the teacher's number of
    classes. A ``denoiser`` is ``"teacher"``, without guidance and the default, or ``"fake"``.

    Args:
        make: The registered class.
        arguments: Its other arguments.
    """

    def __init__(self, make: Callable[..., Critic], arguments: Mapping[str, Any]) -> None:
        self.make, self.arguments = make, arguments
        self.phase: Phase | None = None

    def __call__(self, models: Models, phase: Phase, example: Condition) -> Critic:
        """Builds the critic of a phase."""
        self.phase = phase
        real: Any = models.real
        teacher = unguided(real)
        context = {
            "example": example,
            "dim": math.prod(teacher.latent_shape),
            "classes": getattr(teacher, "classes", 0),
        }
        known = {key: value for key, value in context.items() if key in keys_of(self.make)}
        arguments = {**known, **self.arguments}
        if isinstance(arguments.get("denoiser"), str):
            arguments["denoiser"] = teacher if arguments["denoiser"] == "teacher" else models.fake
        return self.make(**arguments)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.arguments.items())
        return f"{getattr(self.make, '__name__', self.make)}({arguments})"


class PhaseCritic(nn.Module):
    """The critic of the phase that started last, as one network for a density ratio.

    Args:
        critics: The critics.
        configured: What builds them.
    """

    def __init__(self, critics: Critics, configured: ConfiguredCritic) -> None:
        super().__init__()
        self.critics, self.configured = critics, configured

    def forward(self, x_t: Latents, t: Tensor, condition: Condition = None) -> Tensor:
        """Evaluates the logits, with shape :math:`(B)`.

        Raises:
            ValueError: If no term of the fake score's objective trains the critic.
        """
        phase = self.configured.phase
        if phase is None:
            raise ValueError(
                "no term trains the critic of this density ratio; add the discriminator loss to "
                "objective.fake, with the same critics"
            )
        return self.critics.of(phase)(x_t, t, condition)


class SharedCritics:
    """The sets of critics of a configuration, one for each different table.

    Args:
        default: The table of terms that name no critics.

    Attributes:
        used: Whether a term uses the default.
        follows_phase: Whether a density ratio follows the phase in training.
    """

    def __init__(self, default: Mapping[str, Any]) -> None:
        self.default = default
        self.used = self.follows_phase = False
        self._made: dict[str, tuple[Critics, ConfiguredCritic]] = {}

    def critics(self, table: Any, where: str) -> Critics:
        """Returns the critics of a table, the default for ``None``.

        Raises:
            ValueError: If the table does not describe a registered critic.
        """
        return self._of(table, where)[0]

    def phase_critic(self, table: Any, where: str) -> PhaseCritic:
        """Returns the critics of a table as one network that follows the phase in training."""
        self.follows_phase = True
        return PhaseCritic(*self._of(table, where))

    def _of(self, table: Any, where: str) -> tuple[Critics, ConfiguredCritic]:
        if table is None:
            self.used = True
            table, where = self.default, "objective.critic"
        make, arguments = Composer({Denoiser: _role}).read(Critic, table, where)
        key = inline_toml({"name": table} if isinstance(table, str) else table)
        if key not in self._made:
            configured = ConfiguredCritic(make, arguments)
            self._made[key] = Critics(configured), configured
        return self._made[key]


def _role(value: Any, where: str) -> str:
    if value not in (None, "teacher", "fake"):
        raise ValueError(f"{where} is 'teacher' or 'fake', got {short(value)}")
    return value or "teacher"
