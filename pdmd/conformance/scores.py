r"""The check that a network predicts what its teacher declares, on the teacher's own samples.

Samples :math:`x_s` of the teacher's probability flow are diffused to :math:`x_t = a x_s + b
\varepsilon`. If the network is the score of those samples, its prediction of the noise is a
conditional mean, and the least-squares slope of the noise on it

.. math:: \rho_t = \frac{\mathbb E \langle \varepsilon, \hat\varepsilon \rangle}
    {\mathbb E \|\hat\varepsilon\|^2}

is 1 at every time (:mod:`pdmd.training.monitoring.calibration`); its error is also below that of
the best linear prediction from :math:`x_t` unless the samples are Gaussian. A network with a wrong
sign, time, kind or schedule samples something else, whose score it is not.

A wrong declaration is named by trying the right one: the check fails where a correction makes the
slopes 1. Of several, those that denoise best are kept, and the slopes nearest to 1 decide. Where
none does, weights are untrained or wrong otherwise, and the check does not apply.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pdmd.conformance.harness import CheckFailed, NotApplicable, TeacherHarness
from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.predictions import KINDS, Kind
from pdmd.diffusion.sampling import sample_ode
from pdmd.diffusion.schedules import (
    RectifiedFlow,
    Schedule,
    Shifted,
    VarianceExploding,
    same_process,
)
from pdmd.diffusion.solvers import diffuse, transition_noise
from pdmd.diffusion.variance_preserving import CosineVP, DiscreteVP, LinearVP
from pdmd.randomness import randn_like
from pdmd.teachers.guided import unguided
from pdmd.training.monitoring.self_calibration import noise_times
from pdmd.typing import Condition, Latents

__all__ = ["Calibration", "calibrate_score", "check_score"]

STEPS = 24
NUMBERS = 2048
"""Numbers in all samples of a calibration, of 12 samples or more."""
LEVELS = (2.5, 1.0, 0.0, -1.0, -2.0)
"""Log-SNRs of the times, for samples of unit variance."""
TOLERANCE = 0.12
LEAST_GAIN = 0.05
ALIKE = 0.8
"""Declarations are compared by their slopes from this share of the largest gain."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    r"""How well a network is the score of its own samples.

    Attributes:
        slopes: :math:`\rho_t` at a few times.
        gains: The relative decrease of the squared error of :math:`\hat\varepsilon` from that of
            the best linear prediction, at the same times.
    """

    slopes: tuple[float, ...]
    gains: tuple[float, ...]

    @property
    def right(self) -> bool:
        """Whether the slopes are 1 and no linear prediction is better, within the tolerance."""
        return self.error <= TOLERANCE and min(self.gains) >= -TOLERANCE

    @property
    def decided(self) -> bool:
        """Whether it is better than a linear prediction at some time."""
        return max(self.gains) >= LEAST_GAIN

    @property
    def gain(self) -> float:
        """The mean gain. That of another declaration whose slopes are 1 too is far lower."""
        return sum(self.gains) / len(self.gains)

    @property
    def error(self) -> float:
        """The largest distance of a slope from 1; infinite where one is not finite."""
        errors = [abs(slope - 1) for slope in self.slopes]
        return max(errors) if all(map(math.isfinite, errors)) else math.inf

    def __str__(self) -> str:
        return (
            f"noise slopes {min(self.slopes):.3g} to {max(self.slopes):.3g}, "
            f"gains over linear prediction {min(self.gains):.2g} to {max(self.gains):.2g}"
        )


@torch.no_grad()
def calibrate_score(
    denoiser: Denoiser,
    condition: Condition,
    rows: int,
    generator: torch.Generator,
    *,
    groups: int = 1,
    steps: int = STEPS,
) -> Calibration:
    """Samples a denoiser by Euler steps, and calibrates it on its samples.

    Args:
        denoiser: The denoiser, without guidance.
        condition: A condition of ``rows`` rows, the same again after ``groups`` rows, or ``None``.
        rows: The number of samples, a multiple of ``groups``.
        generator: The source of randomness.
        groups: The number of different conditions. The linear prediction knows their means.
        steps: The number of steps, in the share of noise; the shorter, the cleaner.

    Returns:
        The calibration; with slopes that are not finite where the samples are not.
    """
    schedule, low = denoiser.schedule, denoiser.time_range[0]
    end = 0.0 if low < 1 / steps else low
    times = noise_times(schedule, (torch.arange(1, steps) / steps) ** 1.5, end)
    x = sample_ode(
        denoiser, condition, batch=rows, generator=generator, times=[1.0, *times, end]
    ).float()
    number = rows // groups
    mean = x.unflatten(0, (number, groups)).mean(0).repeat(number, *(1,) * (x.ndim - 1))
    variance = float((x - mean).square().mean()) * number / max(number - 1, 1)
    if not (math.isfinite(variance) and variance > 0):
        return Calibration(slopes=(math.nan,), gains=(-math.inf,))
    slopes, gains = [], []
    share = torch.sigmoid(-torch.tensor(LEVELS) / 2 + math.log(variance) / 2)
    for t in noise_times(schedule, share, end):
        epsilon = randn_like(x, generator)
        x_t = diffuse(x, epsilon, end, t, schedule)
        a, b = (float(c) for c in schedule.transition(end, t))
        predicted = transition_noise(denoiser(x_t, t, condition), end).float()
        linear = b / (a * a * variance + b * b) * (x_t - a * mean)
        slopes.append(float((epsilon * predicted).sum() / predicted.square().sum()))
        error, of_linear = (float((epsilon - e).square().mean()) for e in (predicted, linear))
        gains.append(1 - error / of_linear)
    return Calibration(slopes=tuple(slopes), gains=tuple(gains))


def check_score(harness: TeacherHarness) -> str:
    """The network is the score of the teacher's own samples."""
    teacher = unguided(harness.teacher)  # a guided prediction is the score of no samples
    low, high = teacher.time_range
    if high < 1 or low > 0.5:
        raise NotApplicable(f"its time range [{low:.4g}, {high:.4g}] does not reach from noise")
    groups = len(harness.prompts)
    rows = groups * (max(NUMBERS // math.prod(teacher.latent_shape), 12) // groups)
    condition = harness.to_device(teacher.encode(harness.prompts * (rows // groups)))
    seed = int(torch.randint(2**62, (), generator=harness.generator))

    def calibrate(denoiser: Denoiser) -> Calibration:
        generator = torch.Generator().manual_seed(seed)
        return calibrate_score(denoiser, condition, rows, generator, groups=groups)

    found = calibrate(teacher)
    if found.right and found.decided:
        return str(found)
    named = []
    for name, other in corrections(teacher):
        with contextlib.suppress(Exception):  # the network may reject such times
            corrected = calibrate(other)
            if corrected.right and corrected.decided:
                named.append((corrected.error, name, corrected))
    if named:
        most = max(corrected.gain for _, _, corrected in named)
        kept = [item for item in named if item[2].gain >= ALIKE * most]
        _, name, better = min(kept, key=lambda item: item[:2])
        raise CheckFailed(f"{found}; {name}: {better}")
    if found.right:
        raise NotApplicable(f"its samples are as good as Gaussian: {found}")
    raise NotApplicable(
        f"the network is not the score of its own samples, and neither sign, time, kind nor "
        f"schedule explains it; are its weights trained? {found}"
    )


class Corrected(Denoiser):
    """A denoiser under another declaration.

    Args:
        denoiser: The denoiser.
        kind: What it is taken to predict.
        schedule: The forward process that its inputs are taken from.
        time: Maps times to those that the network receives.
        sign: Multiplies its output.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        kind: Kind | None = None,
        schedule: Schedule | None = None,
        time: Callable[[Tensor], Tensor] | None = None,
        sign: float = 1.0,
    ) -> None:
        super().__init__(
            schedule=schedule or denoiser.schedule,
            kind=kind or denoiser.kind,
            latent_shape=denoiser.latent_shape,
            time_range=denoiser.time_range,
        )
        self.denoiser, self.time, self.sign = denoiser, time or (lambda t: t), sign

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates the network at its time, and corrects the sign."""
        return self.sign * self.denoiser.network(x_t, self.time(t), condition)


def corrections(denoiser: Denoiser) -> Iterator[tuple[str, Denoiser]]:
    """Yields other declarations of a denoiser, with what each would mean."""
    yield "its sign is reversed; with the negative output", Corrected(denoiser, sign=-1.0)
    times: dict[str, Callable[[Tensor], Tensor]] = {
        "its time runs the other way; with 1 - t": lambda t: 1 - t,
        "its time is scaled; with 1000 t": lambda t: 1000 * t,
        "its time is scaled; with t / 1000": lambda t: t / 1000,
    }
    for name, time in times.items():
        yield name, Corrected(denoiser, time=time)
    yield (
        "its sign and its time are reversed; with both",
        Corrected(denoiser, sign=-1.0, time=lambda t: 1 - t),
    )
    for kind in KINDS:
        if kind != denoiser.kind:
            yield f"its kind is wrong; as {kind}", Corrected(denoiser, kind=kind)
    own = denoiser.schedule
    others: list[tuple[str, Schedule]] = [
        (repr(schedule), schedule)
        for schedule in (
            *(RectifiedFlow(), CosineVP(), LinearVP()),
            *(Shifted(own, 3.0), Shifted(own, 1 / 3)),
            VarianceExploding(80.0, sigma_min=0.002),
        )
    ]
    others.append(("the levels of Stable Diffusion", _stable_diffusion()))
    for name, schedule in others:
        if not same_process(schedule, own):
            yield f"its schedule is wrong; on {name}", Corrected(denoiser, schedule=schedule)


def _stable_diffusion() -> DiscreteVP:
    """Returns the noise levels of Stable Diffusion, without diffusers: scaled-linear betas."""
    roots = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)
    return DiscreteVP((1 - roots.square()).cumprod(0))
