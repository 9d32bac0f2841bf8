r"""Regression of the expert on the teacher's probability flow inside a phase.

Let :math:`\Phi_{r|t}` be the teacher's flow map: it carries :math:`x_t` to :math:`x_r` along the
probability flow. Expert :math:`k` is itself a map :math:`G` from :math:`x_{t_{k-1}}` to
:math:`x_{t_k}`, so the flow restricted to the phase is something to regress on:

.. math:: L = \mathbb E\, d\big(G(x_{t_{k-1}}),\; \Phi_{t_k | t_{k-1}}(x_{t_{k-1}})\big),

whose minimum is a student with the teacher's own pairing of noise and sample. At one phase it is
DMD's regression loss, :math:`d` being LPIPS there.

One step from :math:`t` to :math:`r` with a prediction :math:`y` of kind :math:`(p, q)` is
:math:`x_r = ((\alpha_r q - \sigma_r p) x_t + D_{r,t}\, y) / D_t`, with :math:`D_t = \alpha_t q -
\sigma_t p` and :math:`D_{r,t} = \alpha_t \sigma_r - \sigma_t \alpha_r < 0`. Solved for the
prediction that lands on a given :math:`x_r`,

.. math:: \bar y = \frac{D_t\, x_r - (\alpha_r q - \sigma_r p)\, x_t}{D_{r,t}},

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


@torch.no_grad()
def flow(
    denoiser: Denoiser, x_t: Latents, t: float, r: float, condition: Condition, steps: int
) -> Latents:
    r"""Carries :math:`x_t` to :math:`x_r` along a denoiser's probability flow, without a gradient.

    Args:
        denoiser: The denoiser whose flow it is.
        x_t: Latents at time :math:`t`, with shape :math:`(B, *)`.
        t: The starting time.
        r: The time to reach, below :math:`t`.
        condition: A TensorDict with batch size :math:`(B)`, or ``None``.
        steps: The number of steps, of equal length in time.

    Returns:
        Latents at time :math:`r`, with shape :math:`(B, *)`, in float32 or wider.
    """
    times = flow_times(t, r, steps)
    x = x_t
    for now, then in zip(times, [*times[1:], r], strict=True):
        x = ode_step(denoiser(x, now, condition), then)
    return x


def flow_times(t: float, r: float, steps: int) -> list[float]:
    """Returns the times, from ``t`` down, at which :func:`flow` asks its denoiser."""
    return [t + (r - t) * i / steps for i in range(steps)]


def average_prediction(
    x_t: Latents, x_r: Latents, t: Times, r: Times, schedule: Schedule, kind: Kind
) -> Latents:
    r"""Returns the prediction at :math:`x_t` whose single step lands on :math:`x_r`.

    On rectified flow and for velocity, the average velocity :math:`(x_t - x_r) / (t - r)`.

    Args:
        x_t: Latents at time :math:`t`, with shape :math:`(B, *)`.
        x_r: Latents at time :math:`r`, likewise.
        t: The noisier time, above 0.
        r: The cleaner time, in :math:`[0, t)`.
        schedule: The forward process.
        kind: What the network predicts.

    Returns:
        The prediction, with shape :math:`(B, *)`, in float32 or wider.
    """
    (alpha_r, sigma_r), (alpha_t, sigma_t) = schedule(r), schedule(t)
    p, q = combination(kind, t, schedule)
    step = alpha_t * sigma_r - sigma_t * alpha_r
    of_x_r = determinant(kind, t, schedule) / step
    of_x_t = -(alpha_r * q - sigma_r * p) / step
    return expand(of_x_r, x_r) * x_r + expand(of_x_t, x_t) * x_t


class Distance(ABC):
    """A distance of two batches, per sample and per dimension."""

    @abstractmethod
    def __call__(self, x: Latents, y: Latents) -> Tensor:
        """Returns the distances of rows, with shape :math:`(B)`, in the arithmetic of ``x``."""

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in vars(self).items())
        return f"{type(self).__name__}({arguments})"


class Squared(Distance):
    r"""The mean squared difference, :math:`\|x - y\|^2 / D`."""

    def __call__(self, x: Latents, y: Latents) -> Tensor:
        return (x - y).flatten(1).square().mean(1)


class PseudoHuber(Distance):
    r"""Quadratic for small differences, linear for large ones.

    .. math:: \sqrt{\|x - y\|^2 / D + c^2} - c

    A few pairs that the expert cannot match (where the flow splits between modes) then don't rule
    the gradient.

    Args:
        c: Where the two meet, as a root mean square per dimension.

    Raises:
        ValueError: If :math:`c` is not positive.

    References:
        Song and Dhariwal, Improved Consistency Training, arXiv:2310.14189, Section 3.3.
    """

    def __init__(self, c: float = 0.03) -> None:
        if not c > 0:
            raise ValueError(f"the scale c must be positive, got {c}; use Squared for a square")
        self.c = float(c)

    def __call__(self, x: Latents, y: Latents) -> Tensor:
        return (Squared()(x, y) + self.c**2).sqrt() - self.c


class TrajectoryRegression(Objective):
    r"""Regresses the phase's output on the teacher's flow from the same phase input.

    The teacher runs anew for every batch, ``steps`` evaluations each: phase inputs change as
    earlier experts do, so no pairs are kept. An expert that draws noise inside the phase is not a
    map of its phase_input, and is pulled to a mean over that noise; use a deterministic one.

    Args:
        steps: The teacher's steps through the phase.
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
        """Computes the mean distance of the output to the teacher's."""
        phase, phase_input = rollout.phase, phase_input_of(rollout)
        target = flow(
            models.real, phase_input, phase.t_start, phase.t_end, rollout.condition, self.steps
        )
        x_s = rollout.x_s.to(torch.promote_types(rollout.x_s.dtype, torch.float32))
        return {self.name: self.distance(x_s, target).mean().float()}

    def time_bounds(self, phase: Phase) -> tuple[float, float]:
        """Returns the last and the first time of the teacher's steps."""
        times = flow_times(phase.t_start, phase.t_end, self.steps)
        return times[-1], times[0]


class VelocityRegression(Objective):
    r"""Regresses the generator's first prediction in a phase on the teacher's average velocity.

    The generator is asked at the phase's first timestep :math:`t = t_{k-1}`; its target carries
    the phase input to the teacher's :math:`x_r` at an anchor time :math:`r` in one step. The
    residual is read as one of :math:`\varepsilon - x_0`, that is, scaled by :math:`(\alpha_t +
    \sigma_t) / D_t`: the loss does not depend on the kind that is predicted, nor on how time is
    warped, and on rectified flow it is the published one.

    Published for the first step alone, which then owns the diversity, with distribution matching
    for all others::

        generator = VelocityRegression().only(0) + DistributionMatching().only(1, 2, 3)

    Args:
        anchor: The anchor time :math:`r` within the phase; the phase's end by default.
        steps: The teacher's steps from the phase's start to the anchor.
        distance: The distance; :class:`Squared` by default.
        name: The loss's name.

    Raises:
        ValueError: If ``steps`` is below 1, or the anchor is not in [0, 1).

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
            raise ValueError(f"an anchor is a time in [0, 1), got {anchor}")
        self.anchor = None if anchor is None else float(anchor)
        self.steps = _positive(steps)
        self.distance = distance or Squared()
        self.name = name

    def losses(
        self, models: Models, rollout: Rollout, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Computes the mean distance of the prediction to its target."""
        phase_input, t, r = (
            phase_input_of(rollout),
            rollout.phase.t_start,
            self._anchor(rollout.phase),
        )
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
        """Returns the last and the first time of the teacher's steps.

        Raises:
            ValueError: If the anchor is not within the phase.
        """
        times = flow_times(phase.t_start, self._anchor(phase), self.steps)
        return times[-1], times[0]

    def _anchor(self, phase: Phase) -> float:
        anchor = phase.t_end if self.anchor is None else self.anchor
        if not phase.t_end <= anchor < phase.t_start:
            raise ValueError(
                f"the anchor {anchor} is not within phase {phase.index + 1}, which runs from "
                f"{phase.t_start} to {phase.t_end}; move it, or limit the objective to its phase, "
                "as in .only(0)"
            )
        return anchor


def phase_input_of(rollout: Rollout) -> Latents:
    """Returns what a rollout was made of.

    Raises:
        ValueError: If the rollout does not say.
    """
    if rollout.phase_input is None:
        raise ValueError(
            "this objective needs the phase input, but rollout.phase_input is None; pass "
            "phase_input= the latents at the phase's start"
        )
    return rollout.phase_input


def _positive(steps: int) -> int:
    if steps < 1:
        raise ValueError(f"the teacher takes at least 1 step, got {steps}")
    return int(steps)


distances: Registry[type[Distance]] = Registry(
    "distance",
    {
        "squared": "pdmd.objectives.regression:Squared",
        "pseudo_huber": "pdmd.objectives.regression:PseudoHuber",
    },
)
