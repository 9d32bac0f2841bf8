"""A small classifier of frames of clips: which character they show, and in which typeface.

Its hidden layer gives the features of clip metrics. It reads single frames, so the features of two
frames tell whether a moving character keeps its appearance.
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
from pdmd.teachers.packaged.clip_world import CLIP_CHARACTERS, ClipBank
from pdmd.teachers.packaged.glyph_world import FACES

__all__ = ["ClipClassifier", "train_clip_classifier"]


class ClipClassifier(ConvolutionalClassifier):
    """A small convolutional network over frames of 16 x 16 pixels."""

    weights = "clip_classifier.safetensors"

    def __init__(self) -> None:
        super().__init__((1, 16, 32, 64), strides=(1, 2, 2))
        self.character = nn.Linear(FEATURES, len(CLIP_CHARACTERS))
        self.face = nn.Linear(FEATURES, len(FACES))

    def features(self, pictures: Tensor) -> Tensor:
        """Returns the features of every frame, with shape :math:`(B, F, 64)`.

        Args:
            pictures: Clips in [0, 1], with shape :math:`(B, 1, F, 16, 16)`.
        """
        frames = pictures.transpose(1, 2).flatten(0, 1)
        rows = torch.cat([self.body(1 - 2 * part) for part in frames.split(1024)])
        return rows.unflatten(0, (len(pictures), -1))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the logits of characters and of typefaces, given :meth:`features`."""
        hidden = features.relu()
        return self.character(hidden), self.face(hidden)


def train_clip_classifier(
    *, updates: int = 3000, seed: int = 1, progress: bool = True
) -> ClipClassifier:
    """Trains the classifier on the frames of clips with noise added.

    Args:
        updates: Optimizer updates, on all frames of 32 clips each.
        seed: The seed of the initial weights and all random numbers.
        progress: Whether to show a progress bar.

    Returns:
        The classifier, frozen.
    """
    bank = ClipBank()

    def loss(classifier: ClipClassifier, generator: torch.Generator) -> Tensor:
        clips = bank.draw(32, generator)
        features = classifier.features(add_noise(clips.pictures, generator))
        character, face = (logits.flatten(0, 1) for logits in classifier(features))
        frames = features.shape[1]
        found = functional.cross_entropy(character, clips.character.repeat_interleave(frames))
        return found + functional.cross_entropy(face, clips.face.repeat_interleave(frames))

    return fit_classifier(ClipClassifier, loss, updates=updates, seed=seed, progress=progress)
