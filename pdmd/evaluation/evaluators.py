"""Evaluators: the metric suites that compare samples of a teacher and its student.

An evaluator is built for given conditions and maps their samples to named metrics. Digits, clothes
and glyphs are compared in a classifier's features, mixtures with their exact distribution, other
teachers in latents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pdmd.arguments import at_least, checked
from pdmd.evaluation.classifier import DigitsClassifier
from pdmd.evaluation.evaluator import Evaluator
from pdmd.evaluation.fashion_evaluator import FashionEvaluator
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
from pdmd.teachers.packaged.fashion import FashionTeacher
from pdmd.teachers.packaged.glyph_world import FACES, NAMES, GlyphBank
from pdmd.teachers.packaged.glyphs import GlyphsTeacher
from pdmd.typing import Condition, Latents, labels_of

__all__ = [
    "DigitsEvaluator",
    "GlyphsEvaluator",
    "LatentEvaluator",
    "LatentProjection",
    "MixtureEvaluator",
    "Evaluator",
    "evaluator_for",
    "needs_condition",
    "reduction_for",
]


@checked
class DigitsEvaluator(Evaluator):
    """Compares digits in a small classifier's features and, within a class, in pixels.

    Args:
        teacher: The digits teacher, for its scale.
        condition: The conditions, with ``label`` of shape :math:`(B)`.
        reference: The teacher's samples with the same conditions, with shape :math:`(B, 1, 8, 8)`.
        seed: The seed of the split of the real images.
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
        return self._metrics(x, self.label, self.reference, self.label, real)

    def real(self) -> dict[str, float]:
        """Returns the metrics of a random half of the images against the other."""
        permutation = torch.randperm(
            len(self.images), generator=torch.Generator().manual_seed(self.seed)
        )
        half, rest = permutation[: len(permutation) // 2], permutation[len(permutation) // 2 :]
        images, labels = self.images, self.labels
        real = self.classifier.features(images[rest])
        return self._metrics(images[half], labels[half], images[rest], labels[rest], real)

    def _metrics(
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


@checked
class GlyphsEvaluator(Evaluator):
    """Compares glyphs in a small classifier's features and predictions.

    Accuracy is the share of samples that show their prompt's character. Distances are to the
    teacher. The diversity within a prompt is measured by the mean cosine, the Vendi score, and the
    effective number of typefaces (the exponential of the entropy of the predicted typefaces), each
    averaged over prompts. The effective number is at most 12, and lower with few samples per
    prompt: compare it with that of real pictures.

    Args:
        teacher: The glyphs teacher, for its decoder.
        prompts: The prompts, names of characters.
        reference: The teacher's samples with these prompts, with shape :math:`(B, 4, 8, 8)`.
        seed: The seed of the real pictures.
    """

    quality, diversity = "feature_distance", "faces"

    def __init__(
        self, teacher: GlyphsTeacher, prompts: Sequence[str], reference: Latents, seed: int
    ) -> None:
        self.classifier = GlyphClassifier.from_package()
        self.decode = teacher.decode
        self.character = torch.tensor([NAMES.index(prompt) for prompt in prompts])
        generator = torch.Generator().manual_seed(seed + 100)
        glyphs = _bank(seed).draw(len(prompts), generator, self.character)
        self.features = self._features(reference)
        self.truth = self.classifier.features(glyphs.pictures)

    def __call__(self, x: Latents) -> dict[str, float]:
        return self._metrics(self._features(x))

    def real(self) -> dict[str, float]:
        """Returns the metrics of real pictures."""
        return self._metrics(self.truth)

    def _features(self, x: Latents) -> Tensor:
        parts = [self.classifier.features(self.decode(part)) for part in x.split(128)]
        return torch.cat(parts)

    def _metrics(self, features: Tensor) -> dict[str, float]:
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


@cache
def _bank(seed: int) -> GlyphBank:
    return GlyphBank(8, seed=seed)


@checked
class MixtureEvaluator(Evaluator):
    """Compares samples of a mixture with its exact distribution.

    Args:
        teacher: The mixture.
        condition: The conditions, or ``None``, for samples of all classes.
        samples: The number of samples.
        seed: The seed of the exact samples.
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
        """Returns the metrics of other exact samples."""
        return self(self.fresh)


@checked
class LatentProjection:
    """Flattens latents and projects large ones by a random matrix, on their device.

    Args:
        seed: The seed of the matrix.
        limit: The largest dimension; larger latents are projected to it.
    """

    def __init__(self, seed: int, limit: int = 64) -> None:
        at_least(1, limit=limit)
        self.seed, self.limit = seed, limit
        self.matrix: Tensor | None = None

    def __call__(self, x: Latents) -> Tensor:
        """Returns latents of shape :math:`(B, *)` as rows, float32, with shape :math:`(B, D)`."""
        x = x.flatten(1).float()
        if x.shape[1] <= self.limit:
            return x
        matrix = self.matrix
        if matrix is None:
            generator = torch.Generator().manual_seed(self.seed)
            matrix = torch.randn(x.shape[1], self.limit, generator=generator) / self.limit**0.5
        self.matrix = matrix = matrix.to(x.device)
        return x @ matrix


@checked
class LatentEvaluator(Evaluator):
    """Compares samples of any teacher in latents, randomly projected if they are large.

    Args:
        reference: The teacher's samples, with shape :math:`(B, *)`.
        seed: The seed of the projection.
        limit: The largest dimension; larger latents are projected to it.
    """

    quality, diversity = "sw2", "coverage"

    def __init__(self, reference: Latents, seed: int, limit: int = 64) -> None:
        self.projection = LatentProjection(seed, limit)
        self.reference = self.projection(reference)

    def __call__(self, x: Latents) -> dict[str, float]:
        x = self.projection(x)
        coverage, precision = coverage_and_precision(self.reference, x)
        return {
            "feature_distance": frechet_distance(x, self.reference),
            "sw2": sliced_wasserstein(x, self.reference),
            "coverage": coverage,
            "precision": precision,
        }


@checked
def evaluator_for(
    teacher: Any,
    condition: Condition,
    reference: Latents,
    seed: int,
    *,
    prompts: Sequence[Any] = (),
) -> Evaluator:
    """Returns the evaluator of a teacher.

    :class:`GlyphsEvaluator` requires that every prompt is the name of a character.

    Args:
        teacher: The teacher, guided or not.
        condition: The conditions of the samples, or ``None``.
        reference: The teacher's samples with these conditions.
        seed: The seed of the evaluator's random numbers.
        prompts: The prompts of the conditions.
    """
    base = unguided(teacher)
    if isinstance(base, GlyphsTeacher) and prompts and set(prompts) <= set(NAMES):
        return GlyphsEvaluator(base, prompts, reference, seed)
    if isinstance(base, DigitsTeacher):
        return DigitsEvaluator(base, condition, reference, seed)
    if isinstance(base, FashionTeacher):
        return FashionEvaluator(base, condition, reference)
    if isinstance(base, MixtureTeacher):
        return MixtureEvaluator(base, condition, len(reference), seed)
    return LatentEvaluator(reference, seed)


def needs_condition(teacher: Any) -> bool:
    """Returns whether the evaluator of a teacher compares samples by their conditions."""
    return isinstance(unguided(teacher), DigitsTeacher | FashionTeacher | MixtureTeacher)


@checked
def reduction_for(teacher: Any, seed: int) -> Callable[[Latents], Tensor]:
    """Returns what the samples of a teacher are reduced to before they are gathered.

    Args:
        teacher: The teacher, guided or not.
        seed: The seed of its evaluator.
    """
    packaged = DigitsTeacher | FashionTeacher | GlyphsTeacher | MixtureTeacher
    if isinstance(unguided(teacher), packaged):
        return lambda x: x
    return LatentProjection(seed)
