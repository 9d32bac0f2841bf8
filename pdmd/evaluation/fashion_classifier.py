"""A small classifier of clothes, whose hidden layer gives the features of fashion metrics."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from pdmd.files import save_tensors
from pdmd.teachers.packaged.fashion_images import CLASSES, FashionImages

__all__ = ["FashionClassifier", "train_fashion_classifier"]

WEIGHTS = "fashion_classifier.safetensors"


class FashionClassifier(nn.Module):
    """A small convolutional network over pictures of 28 x 28 pixels."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for near, far in ((1, 24), (24, 48), (48, 96)):
            layers += [nn.Conv2d(near, far, 3, stride=2, padding=1), nn.BatchNorm2d(far)]
            layers.append(nn.ReLU())
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * 16, 64))
        self.head = nn.Linear(64, len(CLASSES))

    @classmethod
    def from_package(cls) -> FashionClassifier:
        """Loads the weights that ship with the package."""
        from safetensors.torch import load_file

        classifier = cls()
        path = Path(str(resources.files("pdmd.evaluation"))) / "weights" / WEIGHTS
        state = {key: value.float() for key, value in load_file(path).items()}
        classifier.load_state_dict(state, strict=False)  # without the counts of batches
        return classifier.eval().requires_grad_(False)

    def save(self, path: str | Path) -> None:
        """Writes the weights in half precision, as a safetensors file."""
        kept = {k: v.half() for k, v in self.state_dict().items() if v.is_floating_point()}
        save_tensors(kept, path)

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
    from tqdm import tqdm

    images = FashionImages.from_folder(folder, "train")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        classifier = FashionClassifier()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3, weight_decay=1e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=updates)
    for _ in tqdm(range(updates), "classifier", disable=not progress, dynamic_ncols=True):
        rows = torch.randint(len(images.labels), (128,), generator=generator)
        deviation = 0.1 * torch.rand(128, 1, 1, 1, generator=generator)
        noise = torch.randn(128, *images.pictures.shape[1:], generator=generator)
        features = classifier.features(images.pictures[rows] + deviation * noise)
        loss = functional.cross_entropy(classifier(features), images.labels[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        rate.step()
    return classifier.eval().requires_grad_(False)
