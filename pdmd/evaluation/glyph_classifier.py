"""A small classifier of glyphs: which character a picture shows, and in which typeface.

Its hidden layer gives the features of glyph metrics. Its predictions measure whether samples show
the prompt, and how many of the twelve typefaces.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pdmd.evaluation.convolutional_classifier import (
    FEATURES,
    ConvolutionalClassifier,
    add_noise,
    fit_classifier,
)
from pdmd.teachers.packaged.glyph_world import CHARACTERS, FACES, GlyphBank

__all__ = ["GlyphClassifier", "train_glyph_classifier"]


class GlyphClassifier(ConvolutionalClassifier):
    """A small convolutional network over pictures of 32 x 32 pixels."""

    weights = "glyph_classifier.safetensors"

    def __init__(self) -> None:
        super().__init__((3, 24, 48, 96))
        self.character = nn.Linear(FEATURES, len(CHARACTERS))
        self.face = nn.Linear(FEATURES, len(FACES))

    def features(self, pictures: Tensor) -> Tensor:
        """Returns features, with shape :math:`(B, 64)`.

        Args:
            pictures: Pictures in [0, 1], with shape :math:`(B, 3, 32, 32)`.
        """
        return torch.cat([self.body(2 * part - 1) for part in pictures.split(512)])

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the logits of characters and of typefaces, given :meth:`features`."""
        hidden = features.relu()
        return self.character(hidden), self.face(hidden)


def train_glyph_classifier(
    *, updates: int = 3000, variants: int = 48, seed: int = 1, progress: bool = True
) -> GlyphClassifier:
    """Trains the classifier on pictures with noise added.

    Args:
        updates: Optimizer updates.
        variants: Sizes and rotations of each character in each typeface.
        seed: The seed of the initial weights and all random numbers.
        progress: Whether to show a progress bar.

    Returns:
        The classifier, frozen.
    """
    bank = GlyphBank(variants)

    def loss(classifier: GlyphClassifier, generator: torch.Generator) -> Tensor:
        glyphs = bank.draw(128, generator)
        features = classifier.features(add_noise(glyphs.pictures, generator))
        character, face = classifier(features)
        found = functional.cross_entropy(character, glyphs.character)
        return found + functional.cross_entropy(face, glyphs.face)

    return fit_classifier(GlyphClassifier, loss, updates=updates, seed=seed, progress=progress)
