r"""Regression of the expert on the teacher's probability flow inside a phase.

Let :math:`\Phi_{r|t}` be the teacher's flow map, from :math:`x_t` to :math:`x_r` along the
probability flow. Expert :math:`k` is a map :math:`G` from :math:`x_{t_{k-1}}` to :math:`x_{t_k}`,
and is regressed on the flow map of its phase:

.. math:: L = \mathbb E\, d\big(G(x_{t_{k-1}}),\; \Phi_{t_k | t_{k-1}}(x_{t_{k-1}})\big),

which is minimal for a student with the teacher's pairing of noise and samples. With one phase it
is DMD's regression loss, where :math:`d` is LPIPS.

One step from :math:`t` to :math:`r` with a prediction :math:`y` of coefficients :math:`c_x` and
:math:`c_\varepsilon` is :math:`x_r = ((\alpha_r c_\varepsilon - \sigma_r c_x) x_t + D_{r,t}\, y) /
D_t`, with :math:`D_t = \alpha_t c_\varepsilon - \sigma_t c_x` and :math:`D_{r,t} = \alpha_t
\sigma_r - \sigma_t \alpha_r < 0`. The prediction whose step ends at a given :math:`x_r` is

.. math:: \bar y = \frac{D_t\, x_r - (\alpha_r c_\varepsilon - \sigma_r c_x)\, x_t}{D_{r,t}},

which for rectified-flow velocity is the average velocity :math:`(x_t - x_r) / (t - r)`, the
target of diversity-preserved DMD.

References:
    Yin et al., DMD, arXiv:2311.18828, Eq. 9; Wu et al., Diversity-Preserved Distribution Matching
    Distillation, arXiv:2602.03139, Section 3.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pdmd.arguments import at_least, checked
from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.predictions import Kind, combination, determinant
from pdmd.diffusion.schedules import Schedule
from pdmd.diffusion.solvers import ode_step
from pdmd.distillation.phases import Phase
from pdmd.objectives.base import Models, Objective, Rollout
from pdmd.registry import Registry
from pdmd.typing import Condition, Latents, Times, expand

__all__ = [
    "Distance",
    "PseudoHuber",
    "Squared",
    "TrajectoryRegression",
    "VelocityRegression",
    "average_prediction",
    "distances",
    "flow",
]


@checked
@torch.no_grad()
def flow(
    denoiser: Denoiser, x_t: Latents, t: float, r: float, condition: Condition, steps: int
) -> Latents:
    r"""Integrates a denoiser's probability flow from :math:`x_t` to :math:`x_r`, without gradient.

    Args:
        denoiser: The denoiser.
        x_t: Latents at time :math:`t`, with shape :math:`(B, *)`.
        t: The starting time.
        r: The final time, below :math:`t`.
        condition: A TensorDict with batch size :math:`(B)`, or ``None``.
        steps: The number of steps, of equal length in time.

    Returns:
        Latents at time :math:`r`, with shape :math:`(B, *)`, in float32 or wider.
    """
    at_least(1, steps=steps)
    times = flow_times(t, r, steps)
    x = x_t
    for now, later in zip(times, [*times[1:], r], strict=True):
        x = ode_step(denoiser(x, now, condition), later)
    return x


def flow_times(t: float, r: float, steps: int) -> list[float]:
    """Returns the times, decreasing from ``t``, at which :func:`flow` evaluates the denoiser."""
    return [t + (r - t) * i / steps for i in range(steps)]


@checked
def average_prediction(
    x_t: Latents, x_r: Latents, t: Times, r: Times, schedule: Schedule, kind: Kind
) -> Latents:
    r"""Returns the prediction at :math:`x_t` whose single step ends at :math:`x_r`.

    For rectified-flow velocity it is the average velocity :math:`(x_t - x_r) / (t - r)`.

    Args:
        x_t: Latents at time :math:`t`, with shape :math:`(B, *)`.
        x_r: Latents at time :math:`r`, with shape :math:`(B, *)`.
        t: The noisier time, above 0.
        r: The cleaner time, in :math:`[0, t)`.
        schedule: The forward process.
        kind: The kind of the prediction.

    Returns:
        The prediction, with shape :math:`(B, *)`, in float32 or wider.
    """
    (alpha_r, sigma_r), (alpha_t, sigma_t) = schedule(r), schedule(t)
    c_x, c_eps = combination(kind, t, schedule)
    step = alpha_t * sigma_r - sigma_t * alpha_r
    of_x_r = determinant(kind, t, schedule) / step
    of_x_t = -(alpha_r * c_eps - sigma_r * c_x) / step
    return expand(of_x_r, x_r) * x_r + expand(of_x_t, x_t) * x_t


class Distance(ABC):
    """A distance between latents, averaged over the dimensions of each sample."""

    @abstractmethod
    def __call__(self, x: Latents, y: Latents) -> Tensor:
        """Returns the distances of rows, with shape :math:`(B)`, in the dtype of ``x``."""

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in vars(self).items())
        return f"{type(self).__name__}({arguments})"


class Squared(Distance):
    r"""The mean squared difference, :math:`\|x - y\|^2 / D`."""

    def __call__(self, x: Latents, y: Latents) -> Tensor:
        return (x - y).flatten(1).square().mean(1)


@checked
class PseudoHuber(Distance):
    r"""The pseudo-Huber distance, quadratic for small differences and linear for large ones.

    .. math:: \sqrt{\|x - y\|^2 / D + c^2} - c

    It limits the gradient of pairs that the expert cannot match, where the flow splits between
    modes.

    Args:
        c: The scale of the transition, as a root mean square per dimension.

    Raises:
        ValueError: If ``c`` is not positive.

    References:
        Song and Dhariwal, Improved Consistency Training, arXiv:2310.14189, Section 3.3.
    """

    def __init__(self, c: float = 0.03) -> None:
        if not c > 0:
            raise ValueError(
                f"the scale c must be positive, got {c}; for a squared loss use Squared"
            )
        self.c = float(c)

    def __call__(self, x: Latents, y: Latents) -> Tensor:
        return (Squared()(x, y) + self.c**2).sqrt() - self.c


@checked
class TrajectoryRegression(Objective):
    r"""Regresses the phase's output on the teacher's flow from the same phase input.

    The teacher is integrated for every batch, in ``steps`` evaluations: pairs are not stored, as
    phase inputs change with the earlier experts. An expert that draws noise within the phase is
    not a function of its phase input, and would regress to a mean: use a deterministic one.

    Args:
        steps: The teacher's steps in the phase.
        distance: The distance; :class:`Squared` by default.
        name: The loss's name.

    Raises:
        ValueError: If ``steps`` is below 1.

    References:
        Yin et al., DMD, arXiv:2311.18828, Eq. 9 (one phase, from stored pairs, with LPIPS).
    """

    def __init__(
        self,
        steps: int = 4,
        distance: Distance | None = None,
        name: str = "trajectory_regression",
    ) -> None:
        self.steps = _positive(steps)
        self.distance = distance or Squared()
        self.name = name

    def losses(
        self, models: Models, rollout: Rollout, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Computes the mean distance of the output to the teacher's flow."""
        phase, phase_input = rollout.phase, phase_input_of(rollout)
        target = flow(
            models.real, phase_input, phase.t_start, phase.t_end, rollout.condition, self.steps
        )
        x_s = rollout.x_s.to(torch.promote_types(rollout.x_s.dtype, torch.float32))
        return {self.name: self.distance(x_s, target).mean().float()}

    def time_bounds(self, phase: Phase) -> tuple[float, float]:
        """Returns the lowest and highest time of the teacher's steps."""
        times = flow_times(phase.t_start, phase.t_end, self.steps)
        return times[-1], times[0]


@checked
class VelocityRegression(Objective):
    r"""Regresses the generator's first prediction in a phase on the teacher's average velocity.

    The generator is evaluated at the phase's first timestep :math:`t = t_{k-1}`. Its target is the
    prediction whose single step ends at the teacher's :math:`x_r`, at an anchor time :math:`r`.
    The residual is converted to one of :math:`\varepsilon - x_0`, that is, scaled by
    :math:`(\alpha_t + \sigma_t) / D_t`: the loss depends neither on the prediction kind nor on a
    shift of time, and on rectified flow it is the published one.

    Published for the first step, which then determines the diversity, with distribution matching
    in all other steps::

        generator = VelocityRegression().only(1) + DistributionMatching().only(2, 3, 4)

    Args:
        anchor: The anchor time :math:`r` within the phase; the phase's end by default.
        steps: The teacher's steps from the phase's start to the anchor.
        distance: The distance; :class:`Squared` by default.
        name: The loss's name.

    Raises:
        ValueError: If ``steps`` is below 1, or ``anchor`` is not in [0, 1).

    References:
        Wu et al., Diversity-Preserved Distribution Matching Distillation, arXiv:2602.03139,
        Section 3 (rectified flow, 5 of the teacher's 30 steps, weight 0.05).
    """

    def __init__(
        self,
        anchor: float | None = None,
        steps: int = 4,
        distance: Distance | None = None,
        name: str = "velocity_regression",
    ) -> None:
        if anchor is not None and not 0 <= anchor < 1:
            raise ValueError(f"the anchor must be a time in [0, 1), got {anchor}")
        self.anchor = None if anchor is None else float(anchor)
        self.steps = _positive(steps)
        self.distance = distance or Squared()
        self.name = name

    def losses(
        self, models: Models, rollout: Rollout, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Computes the mean distance of the prediction to its target."""
        phase_input = phase_input_of(rollout)
        t, r = rollout.phase.t_start, self._anchor(rollout.phase)
        x_r = flow(models.real, phase_input, t, r, rollout.condition, self.steps)
        prediction = models.expert(phase_input, t, rollout.condition)
        schedule, kind = prediction.schedule, prediction.kind
        alpha_t, sigma_t = schedule(t)
        scale = (alpha_t + sigma_t) / determinant(kind, t, schedule)
        target = average_prediction(phase_input, x_r, t, r, schedule, kind)
        scale = expand(scale, target)
        return {
            self.name: self.distance(scale * prediction.to(kind), scale * target).mean().float()
        }

    def time_bounds(self, phase: Phase) -> tuple[float, float]:
        """Returns the lowest and highest time of the teacher's steps.

        Raises:
            ValueError: If the anchor is not within the phase.
        """
        times = flow_times(phase.t_start, self._anchor(phase), self.steps)
        return times[-1], times[0]

    def _anchor(self, phase: Phase) -> float:
        anchor = phase.t_end if self.anchor is None else self.anchor
        if not phase.t_end <= anchor < phase.t_start:
            raise ValueError(
                f"the anchor {anchor} is not within phase {phase.number}, from {phase.t_start} to "
                f"{phase.t_end}; change it, or limit the objective to the phase that contains it, "
                "as in .only(1)"
            )
        return anchor


def phase_input_of(rollout: Rollout) -> Latents:
    """Returns the phase input of a rollout.

    Raises:
        ValueError: If it is ``None``.
    """
    if rollout.phase_input is None:
        raise ValueError(
            "this objective requires the phase input, but rollout.phase_input is None; create the "
            "Rollout with phase_input="
        )
    return rollout.phase_input


def _positive(steps: int) -> int:
    if steps < 1:
        raise ValueError(f"the teacher must take at least 1 step, got {steps}")
    return int(steps)


distances: Registry[type[Distance]] = Registry(
    "distance",
    {
        "squared": "pdmd.objectives.regression:Squared",
        "pseudo_huber": "pdmd.objectives.regression:PseudoHuber",
    },
)
