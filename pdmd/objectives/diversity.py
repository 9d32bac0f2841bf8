r"""Diversity of samples of one condition, at any noise level.

Both objectives compare pairs :math:`(i, j)` of a batch with equal conditions, by mean squares over
dimensions, :math:`\|x\|_D^2 = \|x\|^2 / D`, so that a weight does not depend on the size.

**The noise floor.** Two independent samples of :math:`p_s` have the squared distance

.. math:: \mathbb E \|x_s^i - x_s^j\|_D^2
    = \alpha_s^2\, \mathbb E \|x_0^i - x_0^j\|_D^2 + 2 \sigma_s^2 :

outputs of a phase that ends at :math:`s > 0` are :math:`2 \sigma_s^2` apart even where all clean
samples are equal. Either this floor is subtracted (:class:`Outputs`), or the noise of the phase
input is removed: a step from :math:`t` to :math:`s` with a prediction :math:`\hat x_0` is
:math:`x_s = \rho\, x_t + (\alpha_s - \rho\, \alpha_t)\, \hat x_0`, :math:`\rho = \sigma_s /
\sigma_t`, and

.. math:: \hat x_0 = \frac{x_s - \rho\, x_t}{\alpha_s - \rho\, \alpha_t}

is the implied clean sample (:class:`ImpliedClean`): the one for which a single step maps the phase
input to the output. It has no floor and requires no network. At :math:`s = 0` it is :math:`x_s`.

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

from pdmd.arguments import checked
from pdmd.diffusion.checks import check_latents
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


@checked
def same_condition(condition: Condition, batch: int) -> Tensor:
    """Returns which rows of a condition are equal in all of its tensors.

    Args:
        condition: A TensorDict with batch size :math:`(B)`, or ``None``: then all rows are equal.
        batch: :math:`B`.

    Returns:
        A boolean matrix with shape :math:`(B, B)`, true on the diagonal.
    """
    same = torch.ones(batch, batch, dtype=torch.bool)
    if condition is None:
        return same
    for leaf in condition.values(include_nested=True, leaves_only=True):
        if isinstance(leaf, Tensor) and leaf.numel():
            # By sorting: all pairs of long text embeddings would not fit in memory.
            _, row = torch.unique(leaf.reshape(batch, -1), dim=0, return_inverse=True)
            same = same.to(row.device) & (row[:, None] == row)
    return same


@checked
def pair_distances(x: Latents) -> Tensor:
    r"""Returns :math:`\|x_i - x_j\|_D^2`, with shape :math:`(B, B)`, in float32 or wider.

    Computed from differences, since the expanded square loses all digits of small distances.
    """
    check_latents("x", x)
    x = x.flatten(1).to(torch.promote_types(x.dtype, torch.float32))
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.square() / x.shape[1]


@checked
def log_mean_kernel(distances: Tensor, pairs: Tensor, bandwidth: Tensor | float) -> Tensor:
    r"""Returns the logarithm of the mean of :math:`\exp(-d_{ij} / (2 h))` over pairs.

    Args:
        distances: :math:`d_{ij}`, squared distances, with shape :math:`(B, B)`.
        pairs: The pairs to include, a boolean matrix of shape :math:`(B, B)`, not all false.
        bandwidth: :math:`h`, in the units of ``distances``.
    """
    if pairs.dtype is not torch.bool or pairs.shape != distances.shape:
        raise ValueError(
            f"pairs are a boolean matrix of shape {tuple(distances.shape)}, got {pairs.dtype} of "
            f"shape {tuple(pairs.shape)}; give one entry for each distance"
        )
    exponents = -distances[pairs] / (2 * bandwidth)
    return exponents.logsumexp(0) - math.log(len(exponents))


@checked
def implied_clean(
    x_s: Latents, phase_input: Latents, s: Times, t: Times, schedule: Schedule
) -> Latents:
    r"""Returns the clean sample for which a single step maps ``phase_input`` to ``x_s``.

    Args:
        x_s: Latents at time :math:`s`, with shape :math:`(B, *)`.
        phase_input: Latents at time :math:`t > s`, with shape :math:`(B, *)`.
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
    """A view of a rollout whose samples are compared."""

    @abstractmethod
    def __call__(self, models: Models, rollout: Rollout) -> tuple[Latents, float]:
        r"""Returns samples, with shape :math:`(B, *)`, and their noise floor.

        The floor is the expected squared distance per dimension of two samples that differ in
        their noise alone.

        Args:
            models: The denoisers of the phase.
            rollout: The student's samples.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class ImpliedClean(View):
    """The implied clean samples, without a noise floor."""

    def __call__(self, models: Models, rollout: Rollout) -> tuple[Latents, float]:
        phase, schedule = rollout.phase, models.expert.schedule
        phase_input = phase_input_of(rollout)
        return implied_clean(rollout.x_s, phase_input, phase.t_end, phase.t_start, schedule), 0.0


class Outputs(View):
    r"""The outputs :math:`x_s`, with the noise floor :math:`2 \sigma_s^2`."""

    def __call__(self, models: Models, rollout: Rollout) -> tuple[Latents, float]:
        _, sigma_s = models.expert.schedule(rollout.phase.t_end)
        return rollout.x_s, 2 * float(sigma_s) ** 2


class CleanMeans(View):
    r"""The teacher's posterior means :math:`\mathbb E[x_0 | x_s]`, without a noise floor.

    Everything that the teacher denoises is removed from the output. Costs a forward and a backward
    pass of the teacher.
    """

    def __call__(self, models: Models, rollout: Rollout) -> tuple[Latents, float]:
        s = rollout.phase.t_end
        if s == 0:
            return rollout.x_s, 0.0
        return models.real(rollout.x_s, s, rollout.condition).to("x0"), 0.0


@checked
class Repulsion(Objective):
    r"""Repels samples of one condition from each other, by a Gaussian kernel over their pairs.

    .. math:: L = \log \frac1P \sum_{i \neq j} \exp\Big(-\frac{d_{ij}}{2 h}\Big), \qquad
        h = \max\Big(\mathrm{median}\, d - f,\; f \sqrt{2 / D},\; h_0\Big),

    with the noise floor :math:`f`. The bandwidth has no gradient, so that the kernel depends on
    distances relative to the batch's median. The logarithm distributes a gradient of fixed size
    over the pairs, most to the closest, and cancels a floor common to all :math:`d`. The second
    term of :math:`h` is the standard deviation of :math:`d` for noise alone, below which distances
    are not resolved.

    It is not a divergence: its gradient does not vanish where student and teacher are equal, so
    its weight must be small. Batches require several samples per condition; the loss of a batch
    without pairs is 0, and the first such batch is logged.

    Args:
        view: The samples to compare; :class:`ImpliedClean` by default.
        min_bandwidth: :math:`h_0`, in squared units of the latents. It bounds the gradient of a
            collapsed student.
        name: The loss's name.

    Raises:
        ValueError: If ``min_bandwidth`` is not positive.

    References:
        Wang and Isola, arXiv:2005.10242, Section 4.1 (the logarithm of the mean kernel).
    """

    def __init__(
        self, view: View | None = None, min_bandwidth: float = 1e-4, name: str = "repulsion"
    ) -> None:
        if not min_bandwidth > 0:
            raise ValueError(f"min_bandwidth must be positive, got {min_bandwidth}")
        self.view = view or ImpliedClean()
        self.min_bandwidth = float(min_bandwidth)
        self.name = name
        self._pairs = _Pairs(name)

    def losses(
        self, models: Models, rollout: Rollout, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Computes the logarithm of the mean kernel over pairs of equal conditions."""
        x, floor = self.view(models, rollout)
        pairs = self._pairs(rollout.condition, x)
        if pairs is None:
            return {self.name: _zero(x)}
        distances = pair_distances(x)
        noise = floor * math.sqrt(2 / x[0].numel())
        median = distances.detach()[pairs].median()
        bandwidth = (median - floor).clamp(min=max(noise, self.min_bandwidth))
        return {self.name: log_mean_kernel(distances, pairs, bandwidth).float()}

    def __repr__(self) -> str:
        return f"Repulsion({self.view!r}, min_bandwidth={self.min_bandwidth:g})"


@checked
class NoiseSensitivity(Objective):
    r"""Maximises the sensitivity of samples of one condition to their noise (mode seeking).

    Mode seeking maximises the ratio of the distances of outputs and inputs,

    .. math:: r_{ij} = \frac{\|\hat x_0^i - \hat x_0^j\|_D^2}
        {\|x_t^i - x_t^j\|_D^2 / (\alpha_t^2 + \sigma_t^2)},

    with the phase input :math:`x_t` normalised for data of unit variance, and the implied clean
    sample :math:`\hat x_0`, so that noise of the input in the output is no diversity. The loss is
    the mean of :math:`1 / (1 + r_{ij})`: decreasing in the ratio, as the published inverse, but
    within (0, 1], with a bounded gradient for collapsed and for diverging students.

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
        """Computes the mean of 1 / (1 + r) over pairs of equal conditions."""
        x, _ = ImpliedClean()(models, rollout)
        pairs = self._pairs(rollout.condition, x)
        if pairs is None:
            return {self.name: _zero(x)}
        alpha_t, sigma_t = models.expert.schedule(rollout.phase.t_start)
        unit = float(alpha_t**2 + sigma_t**2)
        inputs = pair_distances(phase_input_of(rollout))[pairs] / unit
        # As a / (a + b), which is finite for equal inputs, unlike the ratio.
        loss = inputs / (inputs + pair_distances(x)[pairs]).clamp(min=_TINY)
        return {self.name: loss.mean().float()}

    def __repr__(self) -> str:
        return "NoiseSensitivity()"


_TINY = 1e-12


class _Pairs:
    """Finds pairs of equal conditions, and warns at the first batch without any."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.warned = False

    def __call__(self, condition: Condition, x: Latents) -> Tensor | None:
        pairs = same_condition(condition, len(x)).to(x.device)
        pairs = pairs & ~torch.eye(len(x), dtype=torch.bool, device=x.device)
        if bool(pairs.any()):
            return pairs
        if not self.warned:
            _log.warning(
                "%s: no two samples of a batch share a condition, so its loss is 0; use larger "
                "batches or fewer prompts",
                self.name,
            )
            self.warned = True
        return None


def _zero(x: Latents) -> Tensor:
    return 0.0 * x.float().sum()


views: Registry[type[View]] = Registry(
    "view",
    {
        "implied_clean": "pdmd.objectives.diversity:ImpliedClean",
        "outputs": "pdmd.objectives.diversity:Outputs",
        "clean_means": "pdmd.objectives.diversity:CleanMeans",
    },
)
