r"""The paper's toy: score matching on :math:`(s, 1]` when only :math:`x_s` is known.

:math:`x_0` is one of -1, 0, 1, 2, and :math:`s = 0.5`. An MLP of four layers learns the
velocity from :math:`x_s` alone, with the unbiased target and each weighting, or a biased target;
``full`` learns it from clean samples on the whole interval. The result is the root mean
square distance between the trajectories, from 1 to :math:`s`, of 100 Euler steps under the
network and under the exact velocity.

References:
    Fan et al., Phased DMD, arXiv:2510.27684, the toy of Section 3.2.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from pdmd.benchmarks.base import Benchmark
from pdmd.benchmarks.memory import saved_mib
from pdmd.benchmarks.schemes import biased_target
from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.predictions import Kind
from pdmd.diffusion.schedules import RectifiedFlow, Schedule
from pdmd.diffusion.solvers import ode_step, renoise_step
from pdmd.distillation.phases import Phase
from pdmd.objectives.base import Models, Rollout
from pdmd.objectives.score_matching import SubintervalScoreMatching, subinterval_target
from pdmd.objectives.time_samplers import TimeSampler
from pdmd.objectives.weightings import (
    ClampedWeighting,
    EpsilonWeighting,
    InverseVarianceWeighting,
    RatioWeighting,
    Unweighted,
    Weighting,
)
from pdmd.teachers.mixture import MixtureTeacher
from pdmd.teachers.packaged.mlp import MlpDenoiser
from pdmd.training.ema import Ema
from pdmd.typing import Latents, Times

__all__ = ["Toy1d"]

S, STEPS, STARTS = 0.5, 100, 4000

WEIGHTINGS: dict[str, Weighting] = {
    "full": Unweighted(),
    "unbiased": ClampedWeighting(),
    "unbiased_ratio": RatioWeighting(),
    "unbiased_epsilon": EpsilonWeighting(),
    "unbiased_inverse_variance": InverseVarianceWeighting(std=math.sqrt(1.25)),
    "biased": ClampedWeighting(),
    "biased_rescaled": ClampedWeighting(),
}


def _rescaled(
    x_s: Latents, epsilon: Latents, s: Times, t: Times, schedule: Schedule, kind: Kind
) -> Latents:
    alpha_s, _ = schedule(s)
    return epsilon - x_s / float(alpha_s)


class _Times(TimeSampler):
    """Uniform times from just above the phase's end to pure noise, as in the paper's toy."""

    def from_uniform(self, u: Tensor, phase: Phase, schedule: Schedule) -> Tensor:
        low, high = self.bounds(phase)
        return (phase.t_end + (1 - phase.t_end) * u).clamp(low, high)

    def bounds(self, phase: Phase) -> tuple[float, float]:
        return phase.t_end + 1e-3, 1.0


TARGETS = {"biased": biased_target, "biased_rescaled": _rescaled}


class Toy1d(Benchmark):
    """Trains one network per method and seed and compares its trajectories with the exact ones."""

    methods = tuple(WEIGHTINGS)

    def run(self, method: str, seed: int) -> tuple[dict[str, Any], str | None]:
        teacher = MixtureTeacher(torch.tensor([[-1.0], [0.0], [1.0], [2.0]]), 0.0)
        updates, batch = self.config.updates or 3000, self.config.batch_size or 256
        started = time.process_time()
        network = self._train(method, seed, teacher, updates, batch).requires_grad_(True)
        seconds = time.process_time() - started
        generator = torch.Generator().manual_seed(self.config.data_seed)
        x = torch.randn(STARTS, 1, generator=generator)
        gap = _trajectory(network, x) - _trajectory(teacher, x)  # (steps, starts, 1)
        row = {
            "trajectory_rmse": float(gap.square().mean().sqrt()),
            "nfe": STEPS,
            "forwards": 3 * updates,
            "cpu_seconds": round(seconds, 2),
            "saved_mib": saved_mib(lambda: network(x[:batch], 0.75).value, network),
        }
        return row, None

    def _train(
        self, method: str, seed: int, teacher: MixtureTeacher, updates: int, batch: int
    ) -> Denoiser:
        schedule, generator = RectifiedFlow(), torch.Generator().manual_seed(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = MlpDenoiser(dim=1, schedule=schedule, width=64, depth=4)
        s = 0.0 if method == "full" else S
        phase = Phase(index=0, timesteps=(1.0,), t_end=s, score_range=(s, 1.0))
        objective = SubintervalScoreMatching(
            WEIGHTINGS[method], _Times(), target=TARGETS.get(method, subinterval_target)
        )
        models = Models(real=teacher, fake=network, expert=network)
        optimizer = torch.optim.Adam(network.parameters(), lr=2e-3, fused=True)
        average = Ema(network, 0.997)
        for i in range(updates):
            for group in optimizer.param_groups:
                group["lr"] = 2e-3 * 0.5 * (1 + math.cos(math.pi * i / updates))
            x_s = teacher.sample(batch, generator=generator)
            if s:
                x_s = renoise_step(x_s, 0.0, s, schedule, generator)
            rollout = Rollout(x_s=x_s, condition=None, phase=phase)
            (loss,) = objective.losses(models, rollout, generator).values()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            average.update(network, i)
        return average.network


@torch.no_grad()
def _trajectory(denoiser: Denoiser, x: Latents) -> Latents:
    times = [1 - (1 - S) * i / STEPS for i in range(STEPS)] + [S]
    states = []
    for t, tau in zip(times, times[1:], strict=False):
        x = ode_step(denoiser(x, t), tau)
        states.append(x)
    return torch.stack(states)
