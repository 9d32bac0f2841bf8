"""Checks of the forward process: schedule, steps, plans, and predictions of exact samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pdmd.conformance.copies import without_guidance
from pdmd.conformance.harness import ROWS, Failed, Harness, NotApplicable
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

SAMPLES = 1024
"""Exact samples that are drawn where a teacher has some."""


@torch.no_grad()
def check_schedule(harness: Harness) -> str:
    """The schedule falls in log-SNR, inverts, and its derivatives are those of its values."""
    schedule = harness.teacher.schedule
    t = torch.linspace(0.01037, 0.99037, 99, dtype=torch.float64)  # off the knots of levels
    log_snr = schedule.log_snr(t)
    if not bool((log_snr.diff() < 0).all()):
        i = int((~(log_snr.diff() < 0)).nonzero()[0])
        raise Failed(f"the log-SNR does not fall from t = {float(t[i]):.2f}")
    back = float((schedule.t_from_log_snr(log_snr) - t).abs().max())
    if not back < 1e-6:
        raise Failed(f"t_from_log_snr is {back:.2g} off the time")
    h = 1e-6
    worst = 0.0
    for found, ahead, behind in zip(
        schedule.derivatives(t), schedule(t + h), schedule(t - h), strict=True
    ):
        slope = (ahead - behind) / (2 * h)
        off = (found - slope).abs() / (1 + slope.abs())
        worst = max(worst, float(off.max()))
    if not worst < 1e-4:
        raise Failed(f"derivatives are {worst:.2g} off the differences of the values")
    low, high = float(schedule.log_snr(1.0)), float(schedule.log_snr(0.0))
    return f"log-SNR from {high:.4g} down to {low:.4g}, inverted to {back:.1g}"


@torch.no_grad()
def check_oracle(harness: Harness) -> str:
    """With a network that knows x_0, steps from noise on its schedule and kind end at x_0."""
    teacher = harness.teacher
    x0, times = harness.noise(ROWS), plan_of(teacher).timesteps
    knows = Oracle(teacher, x0)
    found = sample_ode(knows, batch=ROWS, times=times, generator=harness.generator)
    off = float((found - x0).abs().max())
    if not off < 2e-3:
        raise Failed(f"steps of {teacher.kind} end {off:.2g} from the data; check schedule, kind")
    return f"{len(times) - 1} steps of {teacher.kind} end {off:.1g} from the data"


class Oracle(Denoiser):
    """Predicts from the data; the velocity by differences of the schedule."""

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
            p, q = (
                (a - b) / (ahead - behind)
                for a, b in zip(self.schedule(ahead), self.schedule(behind), strict=True)
            )
        else:
            p, q = combination(self.kind, t, self.schedule)
        return expand(p, x0) * x0 + expand(q, x0) * epsilon


@torch.no_grad()
def check_plans(harness: Harness) -> str:
    """A plan from noise to data can be made, and one outside the time range is refused."""
    teacher = harness.teacher
    low, high = teacher.time_range
    plan, condition = plan_of(teacher), harness.condition()
    objective = DistributionMatching(times=UniformTimes(min(0.45, max(0.02, 1.01 * low))))
    check_teacher(teacher, plan, objective, condition)
    steps = ", ".join(f"{t:.4g}" for t in plan.timesteps)
    if low <= 1e-9:
        return f"steps through {steps}"
    outside = PhasePlan.from_timesteps([1.0, low / 2, 0.0])
    try:
        check_teacher(teacher, outside, objective, condition)
    except ValueError:
        return f"steps through {steps}; {low / 2:.4g} is refused"
    raise Failed(f"a step from t = {low / 2:.4g}, outside the time range, is not refused")


@torch.no_grad()
def check_samples(harness: Harness) -> str:
    """Predictions of the teacher's own exact samples have no bias along themselves."""
    teacher, base = harness.teacher, unguided(harness.teacher)
    if not hasattr(base, "sample"):
        raise NotApplicable("has no exact samples")
    if without_guidance(teacher) is not teacher:
        raise NotApplicable("samples are those without guidance")
    count = SAMPLES // len(harness.prompts) * len(harness.prompts)
    prompts = harness.prompts * (count // len(harness.prompts))
    condition = harness.placed(teacher.encode(prompts))
    draw: Any = base
    x0 = draw.sample(count, condition, generator=harness.generator).to(teacher.device)
    slopes = []
    for t in (0.3, 0.5, 0.7):
        alpha, sigma = teacher.schedule(t)
        x_t = expand(alpha, x0) * x0 + expand(sigma, x0) * harness.noise(count)
        said = teacher(x_t, t, condition).to("x0").double()
        slopes.append(float((said * x0).sum() / said.square().sum()))
    text = ", ".join(f"{slope:.3f}" for slope in slopes)
    if not all(abs(slope - 1) < 0.1 for slope in slopes):
        raise Failed(f"data against prediction has slopes {text}, not 1")
    return f"data against prediction has slopes {text}"


def plan_of(teacher: Teacher) -> PhasePlan:
    """Returns two steps that a teacher can take, whatever its range."""
    return PhasePlan.from_timesteps([1.0, (1 + teacher.time_range[0]) / 2, 0.0], steps=2)
