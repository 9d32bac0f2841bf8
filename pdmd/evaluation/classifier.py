"""A small classifier of digits, whose hidden layer gives the features of digit metrics."""

from __future__ import annotations

from importlib import resources

import torch
from torch import Tensor, nn
from torch.nn import functional

from pdmd.teachers.packaged.digits import load_digit_images
from pdmd.typing import Latents

__all__ = ["DigitsClassifier", "train_digits_classifier"]


class DigitsClassifier(nn.Module):
    """A small classifier of 8 x 8 digits, whose hidden layer gives the features."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10)
        )

    @classmethod
    def from_package(cls) -> DigitsClassifier:
        """Loads the weights that ship with the package."""
        from safetensors.torch import load_file

        classifier = cls()
        path = resources.files("pdmd.evaluation") / "weights" / "digits_classifier.safetensors"
        with resources.as_file(path) as file:
            classifier.layers.load_state_dict(load_file(file))
        return classifier.eval().requires_grad_(False)

    def forward(self, x: Latents) -> Tensor:
        """Returns class logits, with shape :math:`(B, 10)`, of latents of shape (B, 1, 8, 8)."""
        return self.layers(x.flatten(1))

    def features(self, x: Latents) -> Tensor:
        """Returns features, with shape :math:`(B, 32)`."""
        return self.layers[:4](x.flatten(1))


def train_digits_classifier(*, updates: int = 1500, seed: int = 1) -> DigitsClassifier:
    """Trains the classifier on 1400 of the images, with noise added.

    Args:
        updates: Optimizer updates.
        seed: The seed of the split, the initial weights and the noise.

    Returns:
        The classifier, frozen.
    """
    images, labels, _ = load_digit_images()
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(images), generator=generator)[:1400]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        classifier = DigitsClassifier()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-3, weight_decay=1e-4)
    for _ in range(updates):
        pick = rows[torch.randint(len(rows), (128,), generator=generator)]
        noisy = images[pick] + 0.3 * torch.randn(128, 1, 8, 8, generator=generator)
        loss = functional.cross_entropy(classifier(noisy), labels[pick])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return classifier.eval().requires_grad_(False)
