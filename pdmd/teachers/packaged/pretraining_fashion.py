"""Pretraining of the fashion teacher by flow matching on Fashion-MNIST."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pdmd.teachers.packaged.fashion import FashionTeacher
from pdmd.teachers.packaged.fashion_images import CLASSES, SIDE, FashionImages
from pdmd.teachers.packaged.pretraining import pretrain
from pdmd.teachers.packaged.transformer import ImageTransformer
from pdmd.typing import Condition, Latents

__all__ = ["TRANSFORMER", "pretrain_fashion"]

TRANSFORMER: dict[str, Any] = {
    "image_size": SIDE,
    "channels": 1,
    "patch_size": 7,
    "width": 128,
    "depth": 4,
    "heads": 4,
    "classes": len(CLASSES),
}
"""Configuration of the transformer: 16 tokens, 128 wide."""


def pretrain_fashion(
    folder: str | Path,
    *,
    updates: int = 6000,
    batch_size: int = 64,
    lr: float = 1.5e-3,
    dropout: float = 0.1,
    seed: int = 0,
    progress: bool = True,
) -> FashionTeacher:
    """Pretrains the fashion teacher on the training pictures.

    With default arguments, the network and its training are those of the packaged weights.

    Args:
        folder: The folder of Fashion-MNIST's files.
        updates: Number of optimizer updates.
        batch_size: Number of pictures per update.
        lr: Peak learning rate of Adam.
        dropout: Probability of replacing a class by the null class, for guidance.
        seed: Seed of the weights and of the samples.
        progress: Whether to show a progress bar.

    Returns:
        The teacher, frozen.

    Raises:
        ValueError: If the folder lacks a file, or one is damaged.
    """
    from tensordict import TensorDict

    images = FashionImages.from_folder(folder, "train")
    mean, std = float(images.pictures.mean()), float(images.pictures.std())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        teacher = FashionTeacher(ImageTransformer(**TRANSFORMER), mean, std)

    def source(n: int, generator: torch.Generator) -> tuple[Latents, Condition]:
        rows = torch.randint(len(images.labels), (n,), generator=generator)
        dropped = torch.rand(n, generator=generator) < dropout
        label = images.labels[rows].masked_fill(dropped, len(CLASSES))
        return teacher.latents(images.pictures[rows]), TensorDict({"label": label}, batch_size=[n])

    return pretrain(
        teacher,
        source,
        updates=updates,
        batch_size=batch_size,
        lr=lr,
        ema=0.999,
        seed=seed,
        progress=progress,
    )
