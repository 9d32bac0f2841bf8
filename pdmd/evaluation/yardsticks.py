"""Yardsticks: what a teacher's samples and its student's are measured by.

Each knows the conditions that were asked for and turns samples into named figures. Digits are
measured in a classifier's features, mixtures against their known law, anything else in latents.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from pdmd.evaluation.classifier import DigitsClassifier
from pdmd.evaluation.metrics import (
    coverage_and_precision,
    frechet_distance,
    mode_histogram_kl,
    pairwise_cosine,
    sliced_wasserstein,
)
from pdmd.teachers.digits import DigitsTeacher, load_digit_images
from pdmd.teachers.guided import unguided
from pdmd.teachers.mixture import MixtureTeacher
from pdmd.typing import Condition, Latents, labels_of

__all__ = [
    "DigitsYardstick",
    "LatentYardstick",
    "MixtureYardstick",
    "Yardstick",
    "yardstick_for",
]


class Yardstick(ABC):
    """Measures samples of given conditions."""

    quality: str
    """The figure of quality that reports plot; lower is better."""
    diversity: str
    """The figure of diversity that reports plot."""

    @abstractmethod
    def __call__(self, x: Latents) -> dict[str, float]:
        """Returns the figures of samples, one for each condition, with shape :math:`(B, *)`."""

    def real(self) -> dict[str, float] | None:
        """Returns the figures of real data, ``None`` where there is none."""
        return None


class DigitsYardstick(Yardstick):
    """Measures digits in a small classifier's features and, within a class, in pixels.

    Args:
        teacher: The digits teacher, for its scale.
        condition: The conditions, with ``label`` of shape :math:`(B)`.
        reference: The teacher's samples of the same conditions, with shape :math:`(B, 1, 8, 8)`.
        seed: Seed of the split of the real images.
    """

    quality, diversity = "feature_distance", "coverage"

    def __init__(
        self, teacher: DigitsTeacher, condition: Condition, reference: Latents, seed: int
    ) -> None:
        self.classifier = DigitsClassifier.from_package()
        self.images, self.labels, _ = load_digit_images(teacher.std)
        self.label = labels_of(condition)
        self.reference = reference
        self.features = self.classifier.features(reference)
        self.seed = seed

    def __call__(self, x: Latents) -> dict[str, float]:
        real = self.classifier.features(self.images)
        return self._measure(x, self.label, self.reference, self.label, real)

    def real(self) -> dict[str, float]:
        """Returns the figures of a random half of the images against the other."""
        order = torch.randperm(
            len(self.images), generator=torch.Generator().manual_seed(self.seed)
        )
        half, rest = order[: len(order) // 2], order[len(order) // 2 :]
        images, labels = self.images, self.labels
        real = self.classifier.features(images[rest])
        return self._measure(images[half], labels[half], images[rest], labels[rest], real)

    def _measure(
        self, x: Latents, label: Tensor, other: Latents, other_label: Tensor, real: Tensor
    ) -> dict[str, float]:
        features = self.classifier.features(x)
        cosines, coverages, precisions = [], [], []
        for c in range(10):
            own, near = x[label == c][:200], other[other_label == c][:200]
            cosines.append(pairwise_cosine(features[label == c]))
            coverage, precision = coverage_and_precision(near.flatten(1), own.flatten(1))
            coverages.append(coverage)
            precisions.append(precision)
        return {
            "accuracy": float((self.classifier(x).argmax(1) == label).float().mean()),
            "feature_distance": frechet_distance(features, self.features),
            "feature_distance_real": frechet_distance(features, real),
            "cosine": sum(cosines) / 10,
            "coverage": sum(coverages) / 10,
            "precision": sum(precisions) / 10,
        }


class MixtureYardstick(Yardstick):
    """Measures samples of a mixture against its exact law.

    Args:
        teacher: The mixture.
        condition: The conditions, or ``None``, for samples of all classes.
        samples: How many samples there are.
        seed: Seed of the exact samples.
    """

    quality, diversity = "sw2", "klh"

    def __init__(
        self, teacher: MixtureTeacher, condition: Condition, samples: int, seed: int
    ) -> None:
        generator = torch.Generator().manual_seed(seed + 100)
        self.teacher, self.condition, self.samples = teacher, condition, samples
        self.truth = teacher.sample(samples, condition, generator=generator)
        self.fresh = teacher.sample(samples, condition, generator=generator)
        self.log_prob = float(teacher.log_prob(self.truth, condition=condition).mean())

    def __call__(self, x: Latents) -> dict[str, float]:
        teacher, modes = self.teacher, len(self.teacher.means)
        distance = torch.cdist(x, teacher.means.float())
        if self.condition is not None and teacher.labels is not None:
            other = teacher.labels != labels_of(self.condition)[:, None]
            distance = distance.masked_fill(other, torch.inf)
        nearest, mode = distance.min(1)
        std = teacher.stds[mode].float()
        near = nearest < std * (math.sqrt(teacher.means.shape[1]) + 2.13)
        hits = torch.bincount(mode[near], minlength=modes)
        log_prob = teacher.log_prob(x, condition=self.condition).clamp(min=-1e4).mean()
        return {
            "klh": mode_histogram_kl(mode, modes),
            "sw2": sliced_wasserstein(x, self.truth),
            "modes": float((hits > 0.1 * self.samples / modes).float().mean()),
            "log_likelihood_gap": float(log_prob) - self.log_prob,
        }

    def real(self) -> dict[str, float]:
        """Returns the figures of a fresh exact draw."""
        return self(self.fresh)


class LatentYardstick(Yardstick):
    """Measures any teacher's samples in latents, projected where these are long.

    Args:
        reference: The teacher's samples, with shape :math:`(B, *)`.
        seed: Seed of the projection.
        limit: Latents of more dimensions are projected to as many.
    """

    quality, diversity = "sw2", "coverage"

    def __init__(self, reference: Latents, seed: int, limit: int = 64) -> None:
        dims = reference[0].numel()
        generator = torch.Generator().manual_seed(seed)
        self.projection = None
        if dims > limit:
            self.projection = torch.randn(dims, limit, generator=generator) / limit**0.5
        self.reference = self._flat(reference)

    def _flat(self, x: Latents) -> Tensor:
        x = x.flatten(1).float()
        return x if self.projection is None else x @ self.projection

    def __call__(self, x: Latents) -> dict[str, float]:
        x = self._flat(x)
        coverage, precision = coverage_and_precision(self.reference, x)
        return {
            "feature_distance": frechet_distance(x, self.reference),
            "sw2": sliced_wasserstein(x, self.reference),
            "coverage": coverage,
            "precision": precision,
        }


def yardstick_for(teacher: Any, condition: Condition, reference: Latents, seed: int) -> Yardstick:
    """Returns the yardstick that suits a teacher.

    Args:
        teacher: The teacher, guided or not.
        condition: The conditions of the samples to measure, or ``None``.
        reference: The teacher's samples of these conditions.
        seed: Seed of what the yardstick draws.
    """
    base = unguided(teacher)
    if isinstance(base, DigitsTeacher):
        return DigitsYardstick(base, condition, reference, seed)
    if isinstance(base, MixtureTeacher):
        return MixtureYardstick(base, condition, len(reference), seed)
    return LatentYardstick(reference, seed)
