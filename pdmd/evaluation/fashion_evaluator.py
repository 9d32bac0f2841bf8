"""The evaluator of clothes: a small classifier's features and predictions."""

from __future__ import annotations

import torch
from torch import Tensor

from pdmd.arguments import checked
from pdmd.evaluation.evaluator import Evaluator
from pdmd.evaluation.fashion_classifier import FashionClassifier
from pdmd.evaluation.metrics import (
    coverage_and_precision,
    frechet_distance,
    similarity_within_prompts,
    vendi_score,
)
from pdmd.teachers.packaged.fashion import FashionTeacher
from pdmd.teachers.packaged.fashion_images import CLASSES, FashionImages
from pdmd.typing import Condition, Latents, labels_of

__all__ = ["FashionEvaluator"]


@checked
class FashionEvaluator(Evaluator):
    """Compares clothes in a small classifier's features and predictions.

    Accuracy is the share of samples that show their class, on average and in the class where it is
    lowest. The diversity within a class is measured by the mean cosine and the Vendi score, each
    averaged over classes. Distances are to the teacher and, with real pictures, to a random
    half of these; :meth:`real` compares the other half.

    Args:
        teacher: The fashion teacher, for its decoder.
        condition: The conditions, with ``label`` of shape :math:`(B)`, 0 to 9.
        reference: The teacher's samples with the same conditions, with shape
            :math:`(B, 1, 28, 28)`.
        images: Real pictures that neither teacher nor classifier was trained on, or ``None``.
    """

    quality, diversity = "feature_distance", "vendi"

    def __init__(
        self,
        teacher: FashionTeacher,
        condition: Condition,
        reference: Latents,
        images: FashionImages | None = None,
    ) -> None:
        self.classifier = FashionClassifier.from_package()
        self.decode, self.label = teacher.decode, labels_of(condition).cpu()
        self.features = self.classifier.features(self.decode(reference.cpu()))
        self.held: tuple[Tensor, Tensor] | None = None
        self.truth: Tensor | None = None
        if images is not None:
            features = self.classifier.features(images.pictures)
            order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
            half, rest = order.chunk(2)
            self.truth, self.held = features[half], (features[rest], images.labels[rest])

    def __call__(self, x: Latents) -> dict[str, float]:
        return self._metrics(self.classifier.features(self.decode(x.cpu())))

    def real(self) -> dict[str, float] | None:
        """Returns the metrics of real pictures of the same classes, or ``None`` without any.

        Raises:
            ValueError: If there are fewer than samples of a class.
        """
        if self.held is None:
            return None
        features, labels = self.held
        rows = torch.zeros_like(self.label)
        for c in self.label.unique():
            own, wanted = (labels == c).nonzero()[:, 0], self.label == c
            if len(own) < int(wanted.sum()):
                raise ValueError(
                    f"there are {len(own)} real pictures of {CLASSES[int(c)]}, of which "
                    f"{int(wanted.sum())} are compared; evaluate fewer samples"
                )
            rows[wanted] = own[: int(wanted.sum())]
        return self._metrics(features[rows])

    def _metrics(self, features: Tensor) -> dict[str, float]:
        right = (self.classifier(features).argmax(1) == self.label).float()
        by_class = [float(right[self.label == c].mean()) for c in self.label.unique()]
        coverage, precision = coverage_and_precision(self.features, features)
        real = {}
        if self.truth is not None:
            real["feature_distance_real"] = frechet_distance(features, self.truth)
        return {
            "accuracy": float(right.mean()),
            "accuracy_lowest": min(by_class),
            "feature_distance": frechet_distance(features, self.features),
            **real,
            "cosine": similarity_within_prompts(features, self.label),
            "vendi": vendi_score(features, self.label),
            "coverage": coverage,
            "precision": precision,
        }
