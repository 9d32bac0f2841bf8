r"""Experts: the network of one phase and its solver.

Expert :math:`k` maps :math:`x_{t_{k-1}}` to :math:`x_{t_k}` in steps at
:math:`t_{k-1} = \tau_1 > \dots > \tau_n > t_k`. In training, a rollout may exit early: it jumps
from :math:`\tau_j` directly to :math:`t_k`, with a gradient through that last step only
(stochastic gradient truncation, SGTS).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn

from pdmd.arguments import checked
from pdmd.diffusion.checks import check_latents
from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.predictions import Prediction
from pdmd.diffusion.solvers import ode_step, renoise_step
from pdmd.distillation.phases import Phase
from pdmd.randomness import check_generator
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


@checked
class Expert(nn.Module, ABC):
    """The denoiser of a phase; calling it maps the phase's input to its output.

    A subclass implements :meth:`advance`, the step between two timesteps of the phase.

    Attributes:
        stochastic: Whether :meth:`advance` samples noise.

    Args:
        denoiser: The phase's network.
        phase: The phase.
    """

    stochastic: bool = False

    def __init__(self, denoiser: Denoiser, phase: Phase) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.phase = phase

    @abstractmethod
    def advance(
        self, prediction: Prediction, tau: float, generator: torch.Generator | None
    ) -> Latents:
        r"""Steps from a prediction to the next timestep :math:`\tau > t_k` of the phase.

        Args:
            prediction: The prediction at the current timestep.
            tau: The next timestep.
            generator: The source of randomness, if ``stochastic``.

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
        r"""Maps :math:`x_{t_{k-1}}` to :math:`x_{t_k}`.

        Args:
            x: Latents at the phase's start, with shape :math:`(B, *)`.
            condition: A TensorDict with batch size :math:`(B)`, or ``None``.
            generator: The source of randomness, if ``stochastic``.
            exit_step: The step, from 0, that jumps to :math:`t_k`; earlier steps then have no
                gradient. With ``None``, all steps are taken, with gradients.

        Returns:
            Latents at the phase's end, with shape :math:`(B, *)`.

        Raises:
            ValueError: If ``exit_step`` is not a step of the phase.
        """
        check_latents("x", x)
        check_generator(generator)
        times = self.phase.timesteps
        if exit_step is not None and not 0 <= exit_step < len(times):
            raise ValueError(
                f"exit_step must be in 0..{len(times) - 1} in a phase of {len(times)} steps, "
                f"got {exit_step}"
            )
        last = len(times) - 1 if exit_step is None else exit_step
        for i in range(last):
            with torch.set_grad_enabled(torch.is_grad_enabled() and exit_step is None):
                x = self.advance(self.denoiser(x, times[i], condition), times[i + 1], generator)
        return ode_step(self.denoiser(x, times[last], condition), self.phase.t_end)


@experts.register("ode")
class OdeExpert(Expert):
    """Steps along the probability flow (Euler steps on rectified flow), as the paper does."""

    def advance(
        self, prediction: Prediction, tau: float, generator: torch.Generator | None
    ) -> Latents:
        return ode_step(prediction, tau)


@experts.register("renoising")
class RenoisingExpert(Expert):
    """Steps to the phase's end and renoises, as consistency models and DMD2 do.

    References:
        Yin et al., DMD2, arXiv:2405.14867, Section 4.4.
    """

    stochastic = True

    def advance(
        self, prediction: Prediction, tau: float, generator: torch.Generator | None
    ) -> Latents:
        x_end = ode_step(prediction, self.phase.t_end)
        return renoise_step(x_end, self.phase.t_end, tau, prediction.schedule, generator)


class Truncation(ABC):
    """Chooses the exit step of a rollout."""

    @abstractmethod
    def __call__(self, phase: Phase, generator: torch.Generator) -> int | None:
        """Returns a step of the phase, from 0, or ``None`` for all steps with gradients."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class StochasticTruncation(Truncation):
    """Exits at a uniformly random step, with a gradient through that step only (SGTS)."""

    def __call__(self, phase: Phase, generator: torch.Generator) -> int | None:
        if phase.steps == 1:
            return 0
        return int(torch.randint(phase.steps, (), generator=generator))


class FullGradient(Truncation):
    """Takes all steps with gradients: more memory, no truncation bias."""

    def __call__(self, phase: Phase, generator: torch.Generator) -> int | None:
        return None
