"""Tiny folders in the layout of Fashion-MNIST."""

import torch

from pdmd.teachers.packaged.fashion_images import SIDE
from pdmd.teachers.packaged.idx import write_idx

__all__ = ["write_fashion"]


def write_fashion(folder, *, count=60, seed=0):
    """Writes both splits with random pictures, a brightness per class; returns the folder."""
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for split, ending in (("train", ".gz"), ("t10k", "")):
        labels = (torch.arange(count) % 10).byte()
        noise = torch.randint(0, 25, (count, SIDE, SIDE), generator=generator)
        write_idx(
            (25 * labels[:, None, None] + noise).byte(),
            folder / f"{split}-images-idx3-ubyte{ending}",
        )
        write_idx(labels, folder / f"{split}-labels-idx1-ubyte{ending}")
    return folder
