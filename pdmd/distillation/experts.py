r"""Experts: one phase's network, and how it walks through the phase.

Expert :math:`k` carries :math:`x_{t_{k-1}}` to :math:`x_{t_k}`. With several steps
:math:`\tau_1 > \dots > \tau_n` inside the phase, a rollout may be cut: it stops at a step
:math:`j`, jumps from :math:`\tau_j` straight to :math:`t_k`, and only that last evaluation is
recorded for the gradient (stochastic gradient truncation, SGTS).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn

from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.predictions import Prediction
from pdmd.diffusion.solvers import ode_step, renoise_step
from pdmd.distillation.phases import Phase
from pdmd.registry import Registry
from pdmd.typing import Condition, Latents

__all__ = [
    "Expert",
    "FullGradient",
    "OdeExpert",
    "RenoisingExpert",
    "StochasticTruncation",
    "Truncation",
    "experts",
]

experts: Registry[type[Expert]] = Registry("expert")
register, get, names = experts.register, experts.get, experts.names


class Expert(nn.Module, ABC):
    """One phase's denoiser; calling it carries the phase's input to its output.

    A subclass implements :meth:`advance`, the step between two timesteps inside the phase.

    Attributes:
        draws: Whether :meth:`advance` draws noise.

    Args:
        denoiser: The phase's network.
        phase: The subinterval it serves.
    """

    draws: bool = False

    def __init__(self, denoiser: Denoiser, phase: Phase) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.phase = phase

    @abstractmethod
    def advance(
        self, prediction: Prediction, tau: float, generator: torch.Generator | None
    ) -> Latents:
        r"""Carries a prediction to the next timestep :math:`\tau > t_k` inside the phase.

        Args:
            prediction: The prediction at the current timestep.
            tau: The next timestep.
            generator: The source of randomness, for steps that draw noise.

        Returns:
            Latents at :math:`\tau`, with shape :math:`(B, *)`.
        """

    def forward(
        self,
        x: Latents,
        condition: Condition = None,
        *,
        generator: torch.Generator | None = None,
        exit_step: int | None = None,
    ) -> Latents:
        r"""Carries :math:`x_{t_{k-1}}` to :math:`x_{t_k}`.

        Args:
            x: Latents at the phase's start, with shape :math:`(B, *)`.
            condition: A TensorDict with batch size :math:`(B)`, or ``None``.
            generator: The source of randomness, for experts that draw noise.
            exit_step: The step, from 0, after which to jump to :math:`t_k`; earlier steps are then
                not recorded for the gradient. ``None`` takes every step and records all.

        Returns:
            Latents at the phase's end, with shape :math:`(B, *)`.

        Raises:
            ValueError: If ``exit_step`` is not a step of the phase.
        """
        times = self.phase.timesteps
        if exit_step is not None and not 0 <= exit_step < len(times):
            raise ValueError(
                f"exit_step = {exit_step} is not one of the phase's {len(times)} steps"
            )
        last = len(times) - 1 if exit_step is None else exit_step
        for i in range(last):
            with torch.set_grad_enabled(torch.is_grad_enabled() and exit_step is None):
                x = self.advance(self.denoiser(x, times[i], condition), times[i + 1], generator)
        return ode_step(self.denoiser(x, times[last], condition), self.phase.t_end)


@experts.register("ode")
class OdeExpert(Expert):
    """Steps deterministically (Euler on rectified flow), as the paper does."""

    def advance(
        self, prediction: Prediction, tau: float, generator: torch.Generator | None
    ) -> Latents:
        return ode_step(prediction, tau)


@experts.register("renoising")
class RenoisingExpert(Expert):
    """Jumps to the phase's end and diffuses back, as consistency models and DMD2 do.

    References:
        Yin et al., DMD2, arXiv:2405.14867, Section 4.4.
    """

    draws = True

    def advance(
        self, prediction: Prediction, tau: float, generator: torch.Generator | None
    ) -> Latents:
        x_end = ode_step(prediction, self.phase.t_end)
        return renoise_step(x_end, self.phase.t_end, tau, prediction.schedule, generator)


class Truncation(ABC):
    """Chooses, for one rollout, the step at which it stops."""

    @abstractmethod
    def __call__(self, phase: Phase, generator: torch.Generator) -> int | None:
        """Returns a step of the phase, or ``None`` for every step with its gradient."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class StochasticTruncation(Truncation):
    """Stops at a step drawn uniformly; the gradient flows through that step alone (SGTS)."""

    def __call__(self, phase: Phase, generator: torch.Generator) -> int | None:
        if phase.steps == 1:
            return 0
        return int(torch.randint(phase.steps, (), generator=generator))


class FullGradient(Truncation):
    """Takes every step and keeps the gradient of all: more memory, no truncation bias."""

    def __call__(self, phase: Phase, generator: torch.Generator) -> int | None:
        return None
