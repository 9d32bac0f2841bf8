"""Sampling: along the probability flow of a denoiser, or along its reverse process."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from pdmd.arguments import at_least, checked
from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.solvers import ode_step, stochastic_step
from pdmd.randomness import randn
from pdmd.typing import Condition, Latents

__all__ = ["check_batch", "initial_noise", "ode_times", "sample_ode", "sample_sde"]


@checked
def initial_noise(
    denoiser: Denoiser,
    batch: int,
    generator: torch.Generator | None = None,
    *,
    latent_shape: Sequence[int] | None = None,
) -> Latents:
    r"""Draws the noise that sampling starts from, in torch's default type.

    .. math:: x_1 = \sqrt{\alpha_1^2 + \sigma_1^2} \, \varepsilon

    See :meth:`~pdmd.diffusion.schedules.Schedule.prior_std`.

    Args:
        denoiser: Gives the schedule, the latent shape and the device.
        batch: :math:`B`, the number of samples.
        generator: The source of randomness.
        latent_shape: The shape of one sample; the denoiser's by default.

    Returns:
        The noise, with shape :math:`(B, *)`.
    """
    at_least(0, batch=batch)
    shape = (batch, *(denoiser.latent_shape if latent_shape is None else latent_shape))
    return denoiser.schedule.prior_std() * randn(shape, generator, device=denoiser.device)


def check_batch(condition: Condition, batch: int | None) -> int:
    """Returns the number of samples given by a condition or a batch size.

    Args:
        condition: A TensorDict with batch size :math:`(B)`, or ``None``.
        batch: :math:`B`, required without a condition.

    Raises:
        ValueError: If neither gives the number, they differ, or the condition is no TensorDict of
            one row per sample.
    """
    if condition is None:
        if batch is None:
            raise ValueError("without a condition, pass the number of samples, as in batch=16")
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        return batch
    if not hasattr(condition, "batch_size"):
        raise ValueError(
            f"a condition is a TensorDict, got a {type(condition).__name__}; encode prompts with "
            "teacher.encode(prompts)"
        )
    if len(condition.batch_size) != 1:
        raise ValueError(
            f"a condition has one row per sample, got batch size {list(condition.batch_size)}; "
            "encode prompts with teacher.encode(prompts)"
        )
    rows = int(condition.batch_size[0])
    if batch is not None and batch != rows:
        raise ValueError(f"batch = {batch}, but the condition has {rows} rows")
    return rows


@checked
def ode_times(denoiser: Denoiser, steps: int, t_end: float = 0.0) -> list[float]:
    """Returns the times of equal steps from 1 to ``t_end``, both included.

    Args:
        denoiser: The denoiser, evaluated at every time but the last.
        steps: The number of steps.
        t_end: The last time.

    Raises:
        ValueError: If ``steps`` is below 1, or a time is outside the denoiser's time range.
    """
    if steps < 1:
        raise ValueError(f"sampling requires at least 1 step, got {steps}")
    if not 0 <= t_end < 1:
        raise ValueError(f"sampling ends at a time in [0, 1), got t_end = {t_end}")
    times = [1 - (1 - t_end) * i / steps for i in range(steps)] + [t_end]
    _check_range(denoiser, times)
    return times


def _check_range(denoiser: Denoiser, times: Sequence[float]) -> None:
    low, high = denoiser.time_range
    for t in (times[0], times[-2]):
        if not low <= t <= high:
            raise ValueError(
                f"{len(times) - 1} steps evaluate the {type(denoiser).__name__} at t = {t:.4g}, "
                f"outside its range [{low:.4g}, {high:.4g}]; take fewer steps or widen its "
                "time_range"
            )


@checked
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
    r"""Samples a denoiser: integrates its probability flow from noise by DDIM (Euler) steps.

    Args:
        denoiser: A teacher, or any denoiser.
        condition: A TensorDict with batch size :math:`(B)`, or ``None``.
        steps: The number of equal steps, ignored if ``times`` is given.
        batch: :math:`B`, required without a condition.
        generator: The source of randomness.
        t_end: The last time, ignored if ``times`` is given.
        times: The timesteps, strictly decreasing from 1 to the last time, as in
            ``PhasePlan.uniform(50, shift=teacher.shift).timesteps``.

    Returns:
        Latents at the last time, with shape :math:`(B, *)`.

    Raises:
        ValueError: If ``steps`` is below 1, the times do not decrease strictly from 1, a time is
            outside the denoiser's time range, or the batch is missing or does not match.
    """
    times = ode_times(denoiser, steps, t_end) if times is None else _checked(denoiser, times)
    x = initial_noise(denoiser, check_batch(condition, batch), generator)
    for t, s in itertools.pairwise(times):
        x = ode_step(denoiser(x, t, condition), s)
    return x


@checked
@torch.no_grad()
def sample_sde(
    denoiser: Denoiser,
    condition: Condition = None,
    *,
    steps: int = 200,
    batch: int | None = None,
    generator: torch.Generator | None = None,
    t_end: float = 0.0,
    times: Sequence[float] | None = None,
) -> Latents:
    r"""Samples a denoiser along its reverse process, with new noise in every step.

    Where these samples and those of :func:`sample_ode` in as many steps differ by more than two
    draws of either, the predictions are not the scores of one law. Distribution matching aims at
    the law that scores say, so a student can then not match both.

    Args:
        denoiser: A teacher, or any denoiser.
        condition: A TensorDict with batch size :math:`(B)`, or ``None``.
        steps: The number of equal steps, ignored if ``times`` is given; their error is larger than
            that of :func:`sample_ode`, so it takes more of them.
        batch: :math:`B`, required without a condition.
        generator: The source of randomness.
        t_end: The last time, ignored if ``times`` is given.
        times: The timesteps, strictly decreasing from 1 to the last time.

    Returns:
        Latents at the last time, with shape :math:`(B, *)`.

    Raises:
        ValueError: As :func:`sample_ode`.

    References:
        Ho et al., DDPM, arXiv:2006.11239, Algorithm 2.
    """
    times = ode_times(denoiser, steps, t_end) if times is None else _checked(denoiser, times)
    x = initial_noise(denoiser, check_batch(condition, batch), generator)
    for t, s in itertools.pairwise(times):
        x = stochastic_step(denoiser(x, t, condition), s, generator)
    return x


def _checked(denoiser: Denoiser, times: Sequence[float]) -> list[float]:
    times = [float(t) for t in times]
    decreasing = all(s < t for t, s in itertools.pairwise(times))
    if len(times) < 2 or times[0] != 1 or not decreasing:
        raise ValueError(f"expected at least 2 times, strictly decreasing from 1, got {times}")
    _check_range(denoiser, times)
    return times
