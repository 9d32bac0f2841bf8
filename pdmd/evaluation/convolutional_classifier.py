"""Small convolutional classifiers of pictures, whose hidden layer gives the features of metrics.

They are trained on pictures with noise added, so that they read the samples of few-step students.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from pdmd.files import save_tensors

__all__ = ["FEATURES", "ConvolutionalClassifier", "add_noise", "fit_classifier"]

FEATURES = 64
"""Width of the features."""
C = TypeVar("C", bound="ConvolutionalClassifier")


class ConvolutionalClassifier(nn.Module):
    """The base of packaged classifiers: convolutions, and a linear layer to 64 features.

    Args:
        channels: Channels of the pictures, and of every convolution.
        strides: The strides of the convolutions.

    Attributes:
        weights: The name of the packaged file.
    """

    weights: ClassVar[str]

    def __init__(self, channels: Sequence[int], strides: Sequence[int] = (2, 2, 2)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for (near, far), stride in zip(pairwise(channels), strides, strict=True):
            layers += [nn.Conv2d(near, far, 3, stride=stride, padding=1), nn.BatchNorm2d(far)]
            layers.append(nn.ReLU())
        linear = nn.Linear(channels[-1] * 16, FEATURES)  # 4 x 4 are left
        self.body = nn.Sequential(*layers, nn.Flatten(), linear)

    @classmethod
    def from_package(cls: type[C]) -> C:
        """Loads the weights that ship with the package."""
        from safetensors.torch import load_file

        classifier = cls()  # pyright: ignore[reportCallIssue]
        path = Path(str(resources.files("pdmd.evaluation"))) / "weights" / cls.weights
        state = {key: value.float() for key, value in load_file(path).items()}
        classifier.load_state_dict(state, strict=False)  # without the counts of batches
        return classifier.eval().requires_grad_(False)

    def save(self, path: str | Path) -> None:
        """Writes the weights in half precision, as a safetensors file."""
        kept = {k: v.half() for k, v in self.state_dict().items() if v.is_floating_point()}
        save_tensors(kept, path)


def add_noise(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Adds noise of a random standard deviation below 0.1 to each picture.

    Args:
        pictures: Pictures or clips, with shape :math:`(B, *)`.
        generator: The source of randomness.

    Returns:
        Noisy pictures, with shape :math:`(B, *)`.
    """
    rows = (len(pictures), *[1] * (pictures.ndim - 1))
    deviation = 0.1 * torch.rand(rows, generator=generator)
    return pictures + deviation * torch.randn(pictures.shape, generator=generator)


def fit_classifier(
    build: Callable[[], C],
    loss: Callable[[C, torch.Generator], Tensor],
    *,
    updates: int,
    seed: int,
    progress: bool = True,
) -> C:
    """Trains a classifier.

    Args:
        build: Builds it, with random weights.
        loss: Draws a batch and returns the loss of a classifier on it, a scalar.
        updates: Optimizer updates.
        seed: The seed of the initial weights and all random numbers.
        progress: Whether to show a progress bar.

    Returns:
        The classifier, frozen.
    """
    from tqdm import tqdm

    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        classifier = build()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3, weight_decay=1e-3)
    rate: Any = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=updates)
    for _ in tqdm(range(updates), "classifier", disable=not progress, dynamic_ncols=True):
        value = loss(classifier, generator)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        rate.step()
    return classifier.eval().requires_grad_(False)
