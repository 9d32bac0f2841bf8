"""Sampling of a denoiser: the probability-flow ODE, in many steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.solvers import ode_step
from pdmd.randomness import randn
from pdmd.typing import Condition, Latents

__all__ = ["check_batch", "initial_noise", "ode_times", "sample_ode"]


def initial_noise(
    denoiser: Denoiser, batch: int, generator: torch.Generator | None = None
) -> Latents:
    r"""Draws the noise that sampling starts from in float32, with shape ``(batch, *)``.

    .. math:: x_1 = \sqrt{\alpha_1^2 + \sigma_1^2} \, \varepsilon

    as :meth:`~pdmd.diffusion.schedules.Schedule.prior_std` has it.

    Args:
        denoiser: Its schedule and latent shape are taken.
        batch: The number of samples.
        generator: The source of randomness.
    """
    shape = (batch, *denoiser.latent_shape)
    return denoiser.schedule.prior_std() * randn(shape, generator, device=denoiser.device)


def check_batch(condition: Condition, batch: int | None) -> int:
    """Returns the number of samples that a condition and a batch size agree on.

    Raises:
        ValueError: If neither states it, or they differ.
    """
    if condition is None:
        if batch is None:
            raise ValueError("without a condition, say how many samples: batch=16")
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        return batch
    if not hasattr(condition, "batch_size"):
        raise ValueError(
            f"a condition is a TensorDict, got a {type(condition).__name__}; turn prompts into "
            "one with encode(prompts)"
        )
    rows = int(condition.batch_size[0])
    if batch is not None and batch != rows:
        raise ValueError(f"batch = {batch}, but the condition has {rows} rows")
    return rows


def ode_times(denoiser: Denoiser, steps: int, t_end: float = 0.0) -> list[float]:
    """Returns the times of equal steps from noise, ``t_end`` included.

    Args:
        denoiser: What is asked at every time but the last.
        steps: The number of steps.
        t_end: Where to stop.

    Raises:
        ValueError: If ``steps`` is below 1, or the denoiser would be asked outside its time range.
    """
    if steps < 1:
        raise ValueError(f"sampling needs at least 1 step, got {steps}")
    times = [1 - (1 - t_end) * i / steps for i in range(steps)] + [t_end]
    _check_range(denoiser, times)
    return times


def _check_range(denoiser: Denoiser, times: Sequence[float]) -> None:
    low, high = denoiser.time_range
    for t in (times[0], times[-2]):
        if not low <= t <= high:
            raise ValueError(
                f"{len(times) - 1} steps ask the {type(denoiser).__name__} at t = {t:.4g}, "
                f"outside its range [{low:.4g}, {high:.4g}]; take fewer steps or widen its "
                "time_range"
            )


@torch.no_grad()
def sample_ode(
    denoiser: Denoiser,
    condition: Condition = None,
    *,
    steps: int = 50,
    batch: int | None = None,
    generator: torch.Generator | None = None,
    t_end: float = 0.0,
    times: Sequence[float] | None = None,
) -> Latents:
    r"""Integrates a denoiser's probability flow from noise, in equal steps of time or given ones.

    Args:
        denoiser: A teacher, or any denoiser.
        condition: A condition with batch size :math:`(B)`, or ``None``.
        steps: Network evaluations, where no times are given.
        batch: :math:`B`, needed without a condition.
        generator: The source of randomness.
        t_end: Where to stop, where no times are given.
        times: The times to step through, falling from 1, the last where to stop; such as
            ``PhasePlan.uniform(50, shift=teacher.shift).timesteps``.

    Returns:
        Latents at the last time, with shape :math:`(B, *)`.

    Raises:
        ValueError: If ``steps`` is below 1, the times do not fall from 1, the denoiser would be
            asked outside its time range, or the batch is missing or does not fit.
    """
    if times is None:
        times = ode_times(denoiser, steps, t_end)
    else:
        times = [float(t) for t in times]
        falls = all(s < t for t, s in zip(times, times[1:], strict=False))
        if len(times) < 2 or times[0] != 1 or not falls:
            raise ValueError(f"times fall strictly from 1, with one step at least; got {times}")
        _check_range(denoiser, times)
    x = initial_noise(denoiser, check_batch(condition, batch), generator)
    for t, s in zip(times, times[1:], strict=False):
        x = ode_step(denoiser(x, t, condition), s)
    return x
