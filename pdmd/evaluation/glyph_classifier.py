"""A small classifier of glyphs: which character a picture shows, and in which typeface.

Its hidden layer gives the features of glyph metrics. Its predictions measure whether samples show
the prompt, and how many of the twelve typefaces.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from pdmd.files import save_tensors
from pdmd.teachers.packaged.glyph_world import CHARACTERS, FACES, GlyphBank

__all__ = ["GlyphClassifier", "train_glyph_classifier"]

WEIGHTS = "glyph_classifier.safetensors"


class GlyphClassifier(nn.Module):
    """A small convolutional network over pictures of 32 x 32 pixels."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for near, far in ((3, 24), (24, 48), (48, 96)):
            layers += [nn.Conv2d(near, far, 3, stride=2, padding=1), nn.BatchNorm2d(far)]
            layers.append(nn.ReLU())
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * 16, 64))
        self.character = nn.Linear(64, len(CHARACTERS))
        self.face = nn.Linear(64, len(FACES))

    @classmethod
    def from_package(cls) -> GlyphClassifier:
        """Loads the weights that ship with the package."""
        from safetensors.torch import load_file

        classifier = cls()
        path = Path(str(resources.files("pdmd.evaluation"))) / "weights" / WEIGHTS
        state = {key: value.float() for key, value in load_file(path).items()}
        classifier.load_state_dict(state, strict=False)
        return classifier.eval().requires_grad_(False)

    def save(self, path: str | Path) -> None:
        """Writes the weights in half precision, as a safetensors file."""
        kept = {k: v.half() for k, v in self.state_dict().items() if v.is_floating_point()}
        save_tensors(kept, path)

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
    from tqdm import tqdm

    bank = GlyphBank(variants)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        classifier = GlyphClassifier()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3, weight_decay=1e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=updates)
    for _ in tqdm(range(updates), "classifier", disable=not progress, dynamic_ncols=True):
        glyphs = bank.draw(128, generator)
        deviation = 0.1 * torch.rand(128, 1, 1, 1, generator=generator)
        noise = torch.randn(glyphs.pictures.shape, generator=generator)
        character, face = classifier(classifier.features(glyphs.pictures + deviation * noise))
        loss = functional.cross_entropy(character, glyphs.character)
        loss = loss + functional.cross_entropy(face, glyphs.face)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        rate.step()
    return classifier.eval().requires_grad_(False)
