r"""Diversity of the outputs of one condition, at any noise level.

Both objectives look at pairs :math:`(i, j)` of a batch with equal conditions, in mean squares per
dimension, :math:`\|x\|_D^2 = \|x\|^2 / D`, so that one weight serves all sizes.

**The noise floor.** Two independent draws of :math:`p_s` are at

.. math:: \mathbb E \|x_s^i - x_s^j\|_D^2
    = \alpha_s^2\, \mathbb E \|x_0^i - x_0^j\|_D^2 + 2 \sigma_s^2 :

a phase that ends at :math:`s > 0` keeps its outputs :math:`2 \sigma_s^2` apart even where all
clean samples are one. Either the floor is subtracted (:class:`Outputs`), or the carried noise is
taken out first: a step from :math:`t` to :math:`s` with a prediction :math:`\hat x_0` is
:math:`x_s = \rho\, x_t + (\alpha_s - \rho\, \alpha_t)\, \hat x_0`, :math:`\rho = \sigma_s /
\sigma_t`, so

.. math:: \hat x_0 = \frac{x_s - \rho\, x_t}{\alpha_s - \rho\, \alpha_t}

is the clean sample that the expert's walk through its phase amounts to
(:class:`ImpliedClean`), free of a floor, exact and without a network. At :math:`s = 0` it is
:math:`x_s`.

References:
    Mao et al., Mode Seeking GANs, arXiv:1903.05628, Eq. 2; Liu and Wang, Stein Variational
    Gradient Descent, arXiv:1608.04471, Section 5 (the median heuristic).
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pdmd.diffusion.schedules import Schedule
from pdmd.objectives.base import Models, Objective, Rollout
from pdmd.objectives.regression import phase_input_of
from pdmd.registry import Registry
from pdmd.typing import Condition, Latents, Times, expand

__all__ = [
    "CleanMeans",
    "ImpliedClean",
    "NoiseSensitivity",
    "Outputs",
    "Repulsion",
    "View",
    "implied_clean",
    "log_mean_kernel",
    "pair_distances",
    "same_condition",
    "views",
]

_log = logging.getLogger(__name__)


def same_condition(condition: Condition, batch: int) -> Tensor:
    """Says which rows of a condition are equal in every tensor.

    Args:
        condition: A TensorDict with batch size :math:`(B)`, or ``None``, where all are equal.
        batch: :math:`B`.

    Returns:
        A boolean matrix with shape :math:`(B, B)`, true on the diagonal.
    """
    same = torch.ones(batch, batch, dtype=torch.bool)
    if condition is None:
        return same
    for leaf in condition.values(include_nested=True, leaves_only=True):
        if isinstance(leaf, Tensor) and leaf.numel():
            # Sorts rows, as comparing all pairs of long text embeddings would not fit in memory.
            _, row = torch.unique(leaf.reshape(batch, -1), dim=0, return_inverse=True)
            same = same.to(row.device) & (row[:, None] == row)
    return same


def pair_distances(x: Latents) -> Tensor:
    r"""Returns :math:`\|x_i - x_j\|_D^2`, with shape :math:`(B, B)`, in float32 or wider.

    Formed from differences, as the expanded square loses all digits where samples are close.
    """
    x = x.flatten(1).to(torch.promote_types(x.dtype, torch.float32))
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.square() / x.shape[1]


def log_mean_kernel(distances: Tensor, pairs: Tensor, bandwidth: Tensor | float) -> Tensor:
    r"""Returns the logarithm of the mean over pairs of :math:`\exp(-d_{ij} / (2 h))`.

    Args:
        distances: :math:`d_{ij}`, squared, with shape :math:`(B, B)`.
        pairs: Which pairs count, a boolean matrix with at least one true.
        bandwidth: :math:`h`, squared as the distances are.
    """
    exponents = -distances[pairs] / (2 * bandwidth)
    return exponents.logsumexp(0) - math.log(len(exponents))


def implied_clean(
    x_s: Latents, phase_input: Latents, s: Times, t: Times, schedule: Schedule
) -> Latents:
    r"""Returns the clean sample for which one step carries ``phase_input`` to ``x_s``.

    Args:
        x_s: Latents at time :math:`s`, with shape :math:`(B, *)`.
        phase_input: Latents at time :math:`t > s`, likewise.
        s: The cleaner time.
        t: The noisier time.
        schedule: The forward process.

    Returns:
        :math:`(x_s - \rho x_t) / (\alpha_s - \rho \alpha_t)`, with shape :math:`(B, *)`.
    """
    (alpha_s, sigma_s), (alpha_t, sigma_t) = schedule(s), schedule(t)
    rho = sigma_s / sigma_t
    return expand(1 / (alpha_s - rho * alpha_t), x_s) * (x_s - expand(rho, x_s) * phase_input)


class View(ABC):
    """What of the outputs is compared."""

    @abstractmethod
    def __call__(self, models: Models, rollout: Rollout) -> tuple[Latents, float]:
        r"""Returns samples, with shape :math:`(B, *)`, and their floor.

        The floor is the squared distance per dimension that noise alone keeps between two.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class ImpliedClean(View):
    """The clean samples that the expert's walk amounts to; no floor, no network."""

    def __call__(self, models: Models, rollout: Rollout) -> tuple[Latents, float]:
        phase, schedule = rollout.phase, models.expert.schedule
        phase_input = phase_input_of(rollout)
        return implied_clean(rollout.x_s, phase_input, phase.t_end, phase.t_start, schedule), 0.0


class Outputs(View):
    r"""The outputs :math:`x_s` themselves, with the floor :math:`2 \sigma_s^2`."""

    def __call__(self, models: Models, rollout: Rollout) -> tuple[Latents, float]:
        _, sigma_s = models.expert.schedule(rollout.phase.t_end)
        return rollout.x_s, 2 * float(sigma_s) ** 2


class CleanMeans(View):
    r"""The teacher's posterior means :math:`\mathbb E[x_0 | x_s]`, through its network.

    The floor is gone, and so is all that the teacher thinks is noise in the output. Costs a
    forward and a backward of the teacher.
    """

    def __call__(self, models: Models, rollout: Rollout) -> tuple[Latents, float]:
        s = rollout.phase.t_end
        if s == 0:
            return rollout.x_s, 0.0
        return models.real(rollout.x_s, s, rollout.condition).to("x0"), 0.0


class Repulsion(Objective):
    r"""Pushes the outputs of one condition apart, by a kernel over their pairs.

    .. math:: L = \log \frac1P \sum_{i \neq j} \exp\Big(-\frac{d_{ij}}{2 h}\Big), \qquad
        h = \max\Big(\mathrm{median}\, d - f,\; f \sqrt{2 / D},\; h_0\Big),

    with the floor :math:`f`. The bandwidth carries no gradient: the kernel knows distances
    relative to the batch's median alone. The logarithm shares a gradient of fixed size among the
    pairs, most to the closest, and takes a floor common to all :math:`d` out. The second term of
    :math:`h` is the standard deviation of :math:`d` for noise alone, below which distances say
    nothing.

    It is no divergence: where student and teacher agree it still pushes, so its weight stays
    small. Batches need several samples of a condition; a batch without a pair contributes zero,
    and the first is logged.

    Args:
        view: What is compared; :class:`ImpliedClean` by default.
        least: :math:`h_0`, the least bandwidth, in the latents' variance per dimension. It bounds
            the push at a collapse.
        name: The loss's name.

    Raises:
        ValueError: If ``least`` is not positive.

    References:
        Wang and Isola, arXiv:2005.10242, Section 4.1 (the logarithm of the mean kernel).
    """

    def __init__(
        self, view: View | None = None, least: float = 1e-4, name: str = "repulsion"
    ) -> None:
        if not least > 0:
            raise ValueError(f"the least bandwidth must be positive, got {least}")
        self.view = view or ImpliedClean()
        self.least = float(least)
        self.name = name
        self._pairs = _Pairs(name)

    def losses(
        self, models: Models, rollout: Rollout, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Computes the logarithm of the mean kernel over pairs of equal condition."""
        x, floor = self.view(models, rollout)
        pairs = self._pairs(rollout.condition, x)
        if pairs is None:
            return {self.name: _nothing(x)}
        distances = pair_distances(x)
        noise = floor * math.sqrt(2 / x[0].numel())
        median = distances.detach()[pairs].median()
        bandwidth = (median - floor).clamp(min=max(noise, self.least))
        return {self.name: log_mean_kernel(distances, pairs, bandwidth).float()}

    def __repr__(self) -> str:
        return f"Repulsion({self.view!r}, least={self.least:g})"


class NoiseSensitivity(Objective):
    r"""Keeps outputs of one condition as far apart as their noise asks for.

    Mode seeking maximises the ratio of the distances of outputs and of inputs,

    .. math:: r_{ij} = \frac{\|\hat x_0^i - \hat x_0^j\|_D^2}
        {\|x_t^i - x_t^j\|_D^2 / (\alpha_t^2 + \sigma_t^2)},

    with :math:`x_t` the phase's input in units of unit-variance data and :math:`\hat x_0` the
    implied clean sample, so that noise carried through is no diversity. The loss is the mean of
    :math:`1 / (1 + r_{ij})`: falling in the ratio as the published inverse is, but within (0, 1],
    with a gradient that neither explodes at a collapse nor rewards blowing up.

    Args:
        name: The loss's name.

    References:
        Mao et al., Mode Seeking GANs, arXiv:1903.05628, Eq. 2.
    """

    def __init__(self, name: str = "noise_sensitivity") -> None:
        self.name = name
        self._pairs = _Pairs(name)

    def losses(
        self, models: Models, rollout: Rollout, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Computes the mean of 1 / (1 + r) over pairs of equal condition."""
        x, _ = ImpliedClean()(models, rollout)
        pairs = self._pairs(rollout.condition, x)
        if pairs is None:
            return {self.name: _nothing(x)}
        alpha_t, sigma_t = models.expert.schedule(rollout.phase.t_start)
        unit = float(alpha_t**2 + sigma_t**2)
        inputs = pair_distances(phase_input_of(rollout))[pairs] / unit
        # As a / (a + b), which is finite where two inputs are one and the ratio is not.
        loss = inputs / (inputs + pair_distances(x)[pairs]).clamp(min=_TINY)
        return {self.name: loss.mean().float()}

    def __repr__(self) -> str:
        return "NoiseSensitivity()"


_TINY = 1e-12


class _Pairs:
    """Finds pairs of equal condition, and says once that a batch has none."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.said = False

    def __call__(self, condition: Condition, x: Latents) -> Tensor | None:
        pairs = same_condition(condition, len(x)).to(x.device)
        pairs = pairs & ~torch.eye(len(x), dtype=torch.bool, device=x.device)
        if bool(pairs.any()):
            return pairs
        if not self.said:
            _log.warning(
                "%s: no two samples of a batch share a condition, so it counts nothing there; "
                "use larger batches or fewer prompts",
                self.name,
            )
            self.said = True
        return None


def _nothing(x: Latents) -> Tensor:
    return 0.0 * x.float().sum()


views: Registry[type[View]] = Registry(
    "view",
    {
        "implied_clean": "pdmd.objectives.diversity:ImpliedClean",
        "outputs": "pdmd.objectives.diversity:Outputs",
        "clean_means": "pdmd.objectives.diversity:CleanMeans",
    },
)
