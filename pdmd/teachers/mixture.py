r"""Gaussian mixtures: teachers whose score is known in closed form at every time.

For :math:`p_0 = \sum_m w_m \mathcal N(\mu_m, \tau_m^2 I)`, the diffused density :math:`p_t` is the
mixture of :math:`\mathcal N(\alpha_t \mu_m, V_m I)` with
:math:`V_m = \alpha_t^2 \tau_m^2 + \sigma_t^2`. With responsibilities :math:`r_m(x_t)`,

.. math::
    \mathbb E[\varepsilon | x_t] = \sum_m r_m \frac{\sigma_t (x_t - \alpha_t \mu_m)}{V_m},
    \qquad
    \mathbb E[x_0 | x_t] = \sum_m r_m \Big(\mu_m + \frac{\alpha_t \tau_m^2
    (x_t - \alpha_t \mu_m)}{V_m}\Big).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pdmd.arguments import checked
from pdmd.diffusion.predictions import Kind, combination
from pdmd.diffusion.schedules import RectifiedFlow, Schedule
from pdmd.teachers.base import Teacher
from pdmd.teachers.conditioning.prompts import check_prompts
from pdmd.typing import Condition, Latents, Times, expand, labels_of

__all__ = ["MixtureTeacher"]


@checked
class MixtureTeacher(Teacher):
    r"""A Gaussian mixture on any schedule, optionally class-conditional.

    Args:
        means: Means :math:`\mu_m`, with shape :math:`(M, D)`.
        stds: Standard deviations :math:`\tau_m`: one number, or :math:`M` of them.
        weights: Positive weights :math:`w_m`, with shape :math:`(M)`, normalised to sum to 1;
            uniform if ``None``.
        labels: Class of every mode, with shape :math:`(M)`; ``None`` for an unconditional teacher.
        schedule: The forward process; rectified flow by default.
        kind: The kind of prediction.

    Raises:
        ValueError: If shapes disagree, a mean is not finite, a standard deviation is negative, a
            weight is not positive, or a class has no mode.
    """

    def __init__(
        self,
        means: Tensor,
        stds: Tensor | float | Sequence[float] = 0.3,
        *,
        weights: Tensor | None = None,
        labels: Tensor | None = None,
        schedule: Schedule | None = None,
        kind: Kind = "velocity",
    ) -> None:
        means = torch.as_tensor(means)
        if means.ndim != 2 or not means.numel():
            raise ValueError(f"means must have shape (modes, dim), got {tuple(means.shape)}")
        if not bool(means.isfinite().all()):
            raise ValueError("means must be finite")
        modes = len(means)
        stds = torch.as_tensor(stds, dtype=torch.float64)
        if stds.shape not in ((), (1,), (modes,)):
            raise ValueError(
                f"stds must be one number or {modes}, one per mode; got shape {tuple(stds.shape)}"
            )
        stds = stds.expand(modes).clone()
        bad = ~((stds >= 0) & stds.isfinite())
        if bool(bad.any()):
            raise ValueError(f"stds must be finite and non-negative, got {stds[bad][0].item()}")
        weights = torch.ones(modes) if weights is None else torch.as_tensor(weights)
        if weights.shape != (modes,) or not bool(((weights > 0) & weights.isfinite()).all()):
            raise ValueError(f"weights must be {modes} positive numbers, got {weights.tolist()}")
        if labels is not None:
            labels = torch.as_tensor(labels, dtype=torch.int64)
            if labels.shape != (modes,) or int(labels.min()) < 0:
                raise ValueError(f"labels must be {modes} class indices, got {labels.tolist()}")
            if len(labels.unique()) != int(labels.max()) + 1:
                raise ValueError(
                    f"labels must number the classes from 0 without gaps, got {labels.tolist()}"
                )
        super().__init__(
            schedule=schedule or RectifiedFlow(), kind=kind, latent_shape=(means.shape[1],)
        )
        self.means: Tensor
        self.stds: Tensor
        self.log_weights: Tensor
        self.labels: Tensor | None
        self.register_buffer("means", means.double())
        self.register_buffer("stds", stds)
        self.register_buffer("log_weights", (weights / weights.sum()).double().log())
        self.register_buffer("labels", labels)

    @classmethod
    @checked
    def random(
        cls,
        *,
        dim: int = 16,
        classes: int = 8,
        modes: int = 8,
        std: float = 0.3,
        seed: int = 7,
        schedule: Schedule | None = None,
    ) -> MixtureTeacher:
        """Builds a teacher with means sampled from a standard normal.

        Args:
            dim: Dimension :math:`D` of a sample.
            classes: Number of classes; 0 for an unconditional teacher.
            modes: Number of modes per class.
            std: Standard deviation of every mode.
            seed: Seed of the means.
            schedule: The forward process; rectified flow by default.

        Raises:
            ValueError: If ``dim``, ``classes`` or ``modes`` is too small, or ``std`` is negative.
        """
        for name, value, least in (("dim", dim, 1), ("classes", classes, 0), ("modes", modes, 1)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
        generator = torch.Generator().manual_seed(seed)
        means = torch.randn(modes * max(classes, 1), dim, generator=generator)
        labels = torch.arange(classes).repeat_interleave(modes) if classes else None
        return cls(means, std, labels=labels, schedule=schedule)

    @property
    def classes(self) -> int:
        """The number of classes; 0 for an unconditional teacher."""
        return 0 if self.labels is None else int(self.labels.max()) + 1

    @property
    def prompts(self) -> Sequence[Any]:
        """All class indices; the null prompt for an unconditional teacher."""
        return list(range(self.classes)) or [None]

    def encode(self, prompts: Sequence[Any]) -> Condition:
        """Encodes class indices as a condition with ``label``."""
        return encode_labels(prompts, self.classes)

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates the closed form in float64."""
        alpha_t, sigma_t = (expand(c, self.means[:, :1])[:, None] for c in self.schedule(t))
        means, x = self.means, x_t.double()
        variance = alpha_t[..., 0] ** 2 * self.stds**2 + sigma_t[..., 0] ** 2  # (B, M)
        residual = x[:, None] - alpha_t * means  # (B, M, D)
        logits = self._log_prior(condition, len(x)) - 0.5 * (
            residual.square().sum(-1) / variance + means.shape[1] * variance.log()
        )
        r = logits.softmax(-1)
        scaled = (r / variance)[..., None] * residual
        epsilon = sigma_t[:, 0] * scaled.sum(1)
        x0 = r @ means + alpha_t[:, 0] * (self.stds.square()[:, None] * scaled).sum(1)
        c_x, c_eps = combination(self.kind, t, self.schedule)
        return (expand(c_x, x0) * x0 + expand(c_eps, x0) * epsilon).to(x_t.dtype)

    def sample(
        self, n: int, condition: Condition = None, *, generator: torch.Generator | None = None
    ) -> Latents:
        """Samples exactly from :math:`p_0`.

        Args:
            n: Number of samples.
            condition: A condition with batch size :math:`(n)`; ``None`` for all classes.
            generator: The source of randomness; ``None`` uses torch's global generator.

        Returns:
            Samples in float32, with shape :math:`(n, D)`.
        """
        probabilities = self._log_prior(condition, n).softmax(-1)
        mode = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        return (self.means[mode] + self.stds[mode, None] * noise).float()

    def log_prob(self, x: Latents, t: Times = 0.0, condition: Condition = None) -> Tensor:
        r"""Returns the log-density :math:`\log p_t(x_t)`.

        Args:
            x: Noisy samples :math:`x_t`, with shape :math:`(B, D)`.
            t: Times in :math:`[0, 1]`: a float, or a tensor with shape :math:`()` or :math:`(B)`.
            condition: A condition with batch size :math:`(B)`; ``None`` for all classes.

        Returns:
            Log-densities in float64, with shape :math:`(B)`.
        """
        alpha_t, sigma_t = (c.reshape(-1, 1) for c in self.schedule(t))  # (1 or B, 1)
        variance = alpha_t**2 * self.stds**2 + sigma_t**2
        square = (x.double()[:, None] - alpha_t[..., None] * self.means).square().sum(-1)
        log_prior = self._log_prior(condition, len(x)).log_softmax(-1)
        dim = self.means.shape[1]
        log_mode = -0.5 * (square / variance + dim * (2 * math.pi * variance).log())
        return (log_prior + log_mode).logsumexp(-1)

    def _log_prior(self, condition: Condition, batch: int) -> Tensor:
        log_weights = self.log_weights.expand(batch, -1)
        if condition is None or self.labels is None:
            return log_weights
        label = labels_of(condition)[:, None]
        other = (label != self.labels) & (label < self.classes)
        return log_weights.masked_fill(other, -torch.inf)


def encode_labels(prompts: Sequence[Any], classes: int) -> Condition:
    """Encodes class indices as a condition.

    Args:
        prompts: Class indices, as integers or decimal strings; ``None`` for the null class.
        classes: Number of classes; with 0, every prompt must be ``None``.

    Returns:
        A TensorDict with ``label``, int64, of shape :math:`(B)`, where ``classes`` is the null
        class; ``None`` if ``classes`` is 0.

    Raises:
        ValueError: If a prompt is not a class index, or the prompts are a string.
    """
    from tensordict import TensorDict

    check_prompts(prompts)
    labels = []
    for prompt in prompts:
        if prompt is None:
            labels.append(classes)
            continue
        text = str(prompt).strip()
        if not (text.isascii() and text.isdigit() and int(text) < classes):
            allowed = (
                f"a class from 0 to {classes - 1}" if classes else "None: there are no classes"
            )
            raise ValueError(f"prompt {prompt!r} is not {allowed}")
        labels.append(int(text))
    if not classes:
        return None
    return TensorDict({"label": torch.tensor(labels, dtype=torch.int64)}, batch_size=[len(labels)])
