"""A small classifier of clothes, whose hidden layer gives the features of fashion metrics."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from pdmd.evaluation.convolutional_classifier import (
    FEATURES,
    ConvolutionalClassifier,
    add_noise,
    fit_classifier,
)
from pdmd.teachers.packaged.fashion_images import CLASSES, FashionImages

__all__ = ["FashionClassifier", "train_fashion_classifier"]


class FashionClassifier(ConvolutionalClassifier):
    """A small convolutional network over pictures of 28 x 28 pixels."""

    weights = "fashion_classifier.safetensors"

    def __init__(self) -> None:
        super().__init__((1, 24, 48, 96))
        self.head = nn.Linear(FEATURES, len(CLASSES))

    def features(self, pictures: Tensor) -> Tensor:
        """Returns features, with shape :math:`(B, 64)`.

        Args:
            pictures: Pictures in [0, 1], with shape :math:`(B, 1, 28, 28)`.
        """
        return torch.cat([self.body(2 * part - 1) for part in pictures.split(512)])

    def forward(self, features: Tensor) -> Tensor:
        """Returns the logits of the classes, given :meth:`features`."""
        return self.head(features.relu())


def train_fashion_classifier(
    folder: str | Path, *, updates: int = 4000, seed: int = 1, progress: bool = True
) -> FashionClassifier:
    """Trains the classifier on the training pictures, with noise added.

    Args:
        folder: The folder of Fashion-MNIST's files.
        updates: Optimizer updates.
        seed: The seed of the initial weights and all random numbers.
        progress: Whether to show a progress bar.

    Returns:
        The classifier, frozen.

    Raises:
        ValueError: If the folder lacks a file, or one is damaged.
    """
    images = FashionImages.from_folder(folder, "train")

    def loss(classifier: FashionClassifier, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(images.labels), (128,), generator=generator)
        features = classifier.features(add_noise(images.pictures[rows], generator))
        return functional.cross_entropy(classifier(features), images.labels[rows])

    return fit_classifier(FashionClassifier, loss, updates=updates, seed=seed, progress=progress)
