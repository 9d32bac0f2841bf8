"""Fashion-MNIST: 70,000 pictures of clothes of 28 x 28 pixels, in ten classes.

It is read from a folder of its four original files, gzipped or not:
``train-images-idx3-ubyte.gz``, ``train-labels-idx1-ubyte.gz``, ``t10k-images-idx3-ubyte.gz`` and
``t10k-labels-idx1-ubyte.gz``. They are in the Debian package ``dataset-fashion-mnist``, which
installs them to ``/usr/share/datasets/fashion-mnist``, and at
https://github.com/zalandoresearch/fashion-mnist (MIT licence).

References:
    Xiao, Rasul and Vollgraf, Fashion-MNIST, arXiv:1708.07747.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from pdmd.teachers.packaged.idx import read_idx

__all__ = ["CLASSES", "SIDE", "FashionImages"]

CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
"""The names of the classes, in the order of their labels."""

SIDE = 28
"""Pixels along each side of a picture."""

REMEDY = (
    "give the folder of the original files, such as that of the Debian package "
    "dataset-fashion-mnist or of https://github.com/zalandoresearch/fashion-mnist"
)


@dataclass(frozen=True)
class FashionImages:
    """Pictures and their classes.

    Attributes:
        pictures: Pictures in [0, 1], with shape :math:`(N, 1, 28, 28)`.
        labels: Classes, int64, with shape :math:`(N)`.
    """

    pictures: Tensor
    labels: Tensor

    @classmethod
    def from_folder(cls, folder: str | Path, split: Literal["train", "t10k"]) -> FashionImages:
        """Reads a split from its original files.

        Args:
            folder: The folder of the files.
            split: ``train``, the 60,000 pictures for training, or ``t10k``, the 10,000 of the
                test.

        Raises:
            ValueError: If a file is missing or damaged, or the two do not fit each other.
        """
        images = _find(folder, f"{split}-images-idx3-ubyte")
        labels = _find(folder, f"{split}-labels-idx1-ubyte")
        pictures, classes = read_idx(images), read_idx(labels)
        if pictures.ndim != 3 or pictures.shape[1:] != (SIDE, SIDE) or not len(pictures):
            raise ValueError(
                f"{images} has an array of shape {tuple(pictures.shape)}, expected pictures of "
                f"{SIDE} x {SIDE} pixels; {REMEDY}"
            )
        if classes.shape != pictures.shape[:1]:
            raise ValueError(
                f"{labels} has an array of shape {tuple(classes.shape)}, expected the classes of "
                f"the {len(pictures)} pictures of {images}; {REMEDY}"
            )
        if int(classes.max()) >= len(CLASSES):
            raise ValueError(
                f"{labels} has the class {int(classes.max())}, expected classes from 0 to "
                f"{len(CLASSES) - 1}; {REMEDY}"
            )
        return cls(pictures[:, None].float() / 255, classes.long())

    def digest(self) -> str:
        """Returns a digest of pictures and labels, in 16 hexadecimal digits."""
        found = hashlib.sha256((self.pictures * 255).round().byte().numpy().tobytes())
        found.update(self.labels.byte().numpy().tobytes())
        return found.hexdigest()[:16]


def _find(folder: str | Path, name: str) -> Path:
    if not str(folder):
        raise ValueError(f"no folder of Fashion-MNIST was given (--data FOLDER); {REMEDY}")
    for path in (Path(folder) / f"{name}.gz", Path(folder) / name):
        if path.is_file():
            return path
    raise ValueError(f"{folder} has neither {name}.gz nor {name}; {REMEDY}")
