"""Yardsticks: what a teacher's samples and its student's are measured by.

Each knows the conditions that were asked for and turns samples into named figures. Digits and
glyphs are measured in a classifier's features, mixtures against their known law, anything else in
latents.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pdmd.evaluation.classifier import DigitsClassifier
from pdmd.evaluation.glyph_classifier import GlyphClassifier
from pdmd.evaluation.metrics import (
    coverage_and_precision,
    frechet_distance,
    mode_histogram_kl,
    pairwise_cosine,
    similarity_within_prompts,
    sliced_wasserstein,
    vendi_score,
)
from pdmd.teachers.guided import unguided
from pdmd.teachers.mixture import MixtureTeacher
from pdmd.teachers.packaged.digits import DigitsTeacher, load_digit_images
from pdmd.teachers.packaged.glyph_world import FACES, NAMES, GlyphBank
from pdmd.teachers.packaged.glyphs import GlyphsTeacher
from pdmd.typing import Condition, Latents, labels_of

__all__ = [
    "DigitsEvaluator",
    "GlyphsEvaluator",
    "LatentEvaluator",
    "MixtureEvaluator",
    "Evaluator",
    "evaluator_for",
]


class Evaluator(ABC):
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


class DigitsEvaluator(Evaluator):
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


class GlyphsEvaluator(Evaluator):
    """Measures pictures of glyphs in a small classifier's features and answers.

    Beside the share that shows the character asked for and distances to the teacher, it measures
    how different the pictures of one prompt are: their mean cosine, their Vendi score, and the
    effective number of faces (the exponential of the entropy of the classifier's answers), all
    averaged over prompts. That number is at most 12, and less with few samples of a prompt: the
    row of real pictures tells how much less.

    Args:
        teacher: The glyphs teacher, for its decoder.
        prompts: The prompts, names of characters.
        reference: The teacher's samples of these, with shape :math:`(B, 4, 8, 8)`.
        seed: Seed of the real pictures.
    """

    quality, diversity = "feature_distance", "faces"

    def __init__(
        self, teacher: GlyphsTeacher, prompts: Sequence[str], reference: Latents, seed: int
    ) -> None:
        self.classifier = GlyphClassifier.from_package()
        self.decode = teacher.decode
        self.character = torch.tensor([NAMES.index(prompt) for prompt in prompts])
        generator = torch.Generator().manual_seed(seed + 100)
        glyphs = GlyphBank(8, seed=seed).draw(len(prompts), generator, self.character)
        self.features = self._features(reference)
        self.truth = self.classifier.features(glyphs.pictures)

    def __call__(self, x: Latents) -> dict[str, float]:
        return self._measure(self._features(x))

    def real(self) -> dict[str, float]:
        """Returns the figures of pictures of the world itself."""
        return self._measure(self.truth)

    def _features(self, x: Latents) -> Tensor:
        parts = [self.classifier.features(self.decode(part)) for part in x.split(128)]
        return torch.cat(parts)

    def _measure(self, features: Tensor) -> dict[str, float]:
        character, face = self.classifier(features)
        face = face.argmax(1)
        entropies = []
        for prompt in self.character.unique():
            share = torch.bincount(face[self.character == prompt], minlength=len(FACES)).double()
            entropies.append(torch.special.entr(share / share.sum()).sum())
        coverage, precision = coverage_and_precision(self.features, features)
        return {
            "accuracy": float((character.argmax(1) == self.character).float().mean()),
            "feature_distance": frechet_distance(features, self.features),
            "feature_distance_real": frechet_distance(features, self.truth),
            "cosine": similarity_within_prompts(features, self.character),
            "vendi": vendi_score(features, self.character),
            "faces": float(torch.stack(entropies).exp().mean()),
            "coverage": coverage,
            "precision": precision,
        }


class MixtureEvaluator(Evaluator):
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


class LatentEvaluator(Evaluator):
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


def evaluator_for(
    teacher: Any,
    condition: Condition,
    reference: Latents,
    seed: int,
    *,
    prompts: Sequence[Any] = (),
) -> Evaluator:
    """Returns the evaluator that suits a teacher.

    Glyphs are measured as such where every prompt is the name of a character of their world.

    Args:
        teacher: The teacher, guided or not.
        condition: The conditions of the samples to measure, or ``None``.
        reference: The teacher's samples of these conditions.
        seed: Seed of what the evaluator draws.
        prompts: The prompts that the conditions were made of.
    """
    base = unguided(teacher)
    if isinstance(base, GlyphsTeacher) and prompts and set(prompts) <= set(NAMES):
        return GlyphsEvaluator(base, prompts, reference, seed)
    if isinstance(base, DigitsTeacher):
        return DigitsEvaluator(base, condition, reference, seed)
    if isinstance(base, MixtureTeacher):
        return MixtureEvaluator(base, condition, len(reference), seed)
    return LatentEvaluator(reference, seed)
