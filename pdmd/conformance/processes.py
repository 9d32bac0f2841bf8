"""Checks of the process: schedule, ODE steps, phase plans, predictions of exact samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pdmd.conformance.copies import without_guidance
from pdmd.conformance.harness import BATCH, CheckFailed, NotApplicable, TeacherHarness
from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.predictions import combination
from pdmd.diffusion.sampling import sample_ode
from pdmd.distillation.phases import PhasePlan
from pdmd.distillation.validation import check_teacher
from pdmd.objectives.distribution_matching import DistributionMatching
from pdmd.objectives.time_samplers import UniformTimes
from pdmd.teachers.base import Teacher
from pdmd.teachers.guided import unguided
from pdmd.typing import Condition, Latents, expand

__all__ = ["check_oracle", "check_plans", "check_samples", "check_schedule"]

EXACT_SAMPLES = 1024
"""Exact samples drawn from a teacher that has them."""


@torch.no_grad()
def check_schedule(harness: TeacherHarness) -> str:
    """The log-SNR decreases and inverts, and the derivatives agree with finite differences."""
    schedule = harness.teacher.schedule
    t = torch.linspace(
        0.01037, 0.99037, 99, dtype=torch.float64
    )  # between the knots of discrete schedules
    log_snr = schedule.log_snr(t)
    if not bool((log_snr.diff() < 0).all()):
        i = int((~(log_snr.diff() < 0)).nonzero()[0])
        raise CheckFailed(f"the log-SNR does not decrease at t = {float(t[i]):.2f}")
    back = float((schedule.t_from_log_snr(log_snr) - t).abs().max())
    if not back < 1e-6:
        raise CheckFailed(f"t_from_log_snr(log_snr(t)) differs from t by {back:.2g}")
    h = 1e-6
    worst = 0.0
    for found, ahead, behind in zip(
        schedule.derivatives(t), schedule(t + h), schedule(t - h), strict=True
    ):
        slope = (ahead - behind) / (2 * h)
        off = (found - slope).abs() / (1 + slope.abs())
        worst = max(worst, float(off.max()))
    if not worst < 1e-4:
        raise CheckFailed(f"derivatives differ from finite differences by {worst:.2g}")
    low, high = float(schedule.log_snr(1.0)), float(schedule.log_snr(0.0))
    return f"log-SNR from {high:.4g} to {low:.4g}, inverted to {back:.1g}"


@torch.no_grad()
def check_oracle(harness: TeacherHarness) -> str:
    """ODE steps with an oracle for x_0, in the teacher's schedule and kind, end at x_0.

    A schedule that keeps noise at the end, up to a hundredth, may end as far from it as that
    noise.
    """
    teacher = harness.teacher
    x0, times = harness.noise(BATCH), two_step_plan(teacher).timesteps
    oracle = Oracle(teacher, x0)
    found = sample_ode(oracle, batch=BATCH, times=times, generator=harness.generator)
    error = float((found - x0).abs().max())
    kept = float(teacher.schedule(times[-1])[1])
    if not error < 2e-3 + (6 * kept if kept <= 0.01 else 0):
        raise CheckFailed(
            f"steps of {teacher.kind} end {error:.2g} from x_0; check schedule and kind"
        )
    return f"{len(times) - 1} steps of {teacher.kind} end {error:.1g} from x_0"


class Oracle(Denoiser):
    """Predicts from the known x_0; the velocity by finite differences of the schedule."""

    def __init__(self, teacher: Teacher, x0: Latents) -> None:
        super().__init__(
            schedule=teacher.schedule,
            kind=teacher.kind,
            latent_shape=teacher.latent_shape,
            time_range=teacher.time_range,
        )
        self.register_buffer("x0", x0, persistent=False)

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        x0: Any = self.x0
        alpha, sigma = self.schedule(t)
        epsilon = (x_t - expand(alpha, x_t) * x0) / expand(sigma, x_t)
        if self.kind == "velocity":
            ahead, behind = (t + 1e-7).clamp(max=1), (t - 1e-7).clamp(min=0)
            c_x, c_eps = (
                (a - b) / (ahead - behind)
                for a, b in zip(self.schedule(ahead), self.schedule(behind), strict=True)
            )
        else:
            c_x, c_eps = combination(self.kind, t, self.schedule)
        return expand(c_x, x0) * x0 + expand(c_eps, x0) * epsilon


@torch.no_grad()
def check_plans(harness: TeacherHarness) -> str:
    """A phase plan within the time range is valid, and one outside it is rejected."""
    teacher = harness.teacher
    low, high = teacher.time_range
    plan, condition = two_step_plan(teacher), harness.condition()
    objective = DistributionMatching(times=UniformTimes(min(0.45, max(0.02, 1.01 * low))))
    check_teacher(teacher, plan, objective, condition)
    steps = ", ".join(f"{t:.4g}" for t in plan.timesteps)
    if low <= 1e-9:
        return f"steps through {steps}"
    outside = PhasePlan.from_timesteps([1.0, low / 2, 0.0])
    try:
        check_teacher(teacher, outside, objective, condition)
    except ValueError:
        return f"steps through {steps}; {low / 2:.4g} is rejected"
    raise CheckFailed(f"a step from t = {low / 2:.4g}, outside the time range, is not rejected")


@torch.no_grad()
def check_samples(harness: TeacherHarness) -> str:
    r"""Regressing exact samples :math:`x_0` on predictions :math:`\hat x_0` has slope 1."""
    teacher, base = harness.teacher, unguided(harness.teacher)
    if not hasattr(base, "sample"):
        raise NotApplicable("the teacher has no exact samples")
    if without_guidance(teacher) is not teacher:
        raise NotApplicable("exact samples are those without guidance")
    count = EXACT_SAMPLES // len(harness.prompts) * len(harness.prompts)
    prompts = harness.prompts * (count // len(harness.prompts))
    condition = harness.to_device(teacher.encode(prompts))
    exact: Any = base
    x0 = exact.sample(count, condition, generator=harness.generator).to(teacher.device)
    slopes = []
    for t in (0.3, 0.5, 0.7):
        alpha, sigma = teacher.schedule(t)
        x_t = expand(alpha, x0) * x0 + expand(sigma, x0) * harness.noise(count)
        predicted = teacher(x_t, t, condition).to("x0").double()
        slopes.append(float((predicted * x0).sum() / predicted.square().sum()))
    text = ", ".join(f"{slope:.3f}" for slope in slopes)
    if not all(abs(slope - 1) < 0.1 for slope in slopes):
        raise CheckFailed(f"the regression of x_0 on predictions has slopes {text}, expected 1")
    return f"the regression of x_0 on predictions has slopes {text}"


def two_step_plan(teacher: Teacher) -> PhasePlan:
    """Returns a plan of two steps within a teacher's time range."""
    return PhasePlan.from_timesteps([1.0, (1 + teacher.time_range[0]) / 2, 0.0], steps=2)
