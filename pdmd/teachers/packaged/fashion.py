r"""The fashion teacher: a class-conditional rectified-flow transformer with packaged weights.

It draws the pictures of :mod:`pdmd.teachers.packaged.fashion_images` under guidance, and needs no
data set. Latents are pixels, standardised. ``pdmd pretrain fashion`` reproduces the weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from torch import Tensor

from pdmd.diffusion.schedules import RectifiedFlow
from pdmd.teachers.base import Teacher
from pdmd.teachers.mixture import encode_labels
from pdmd.teachers.packaged.fashion_images import CLASSES, SIDE
from pdmd.teachers.packaged.teacher_files import read_teacher, write_teacher
from pdmd.teachers.packaged.transformer import ImageTransformer
from pdmd.typing import Condition, Latents, labels_of

__all__ = ["FashionTeacher"]


class FashionTeacher(Teacher):
    """A small image transformer over 28 x 28 pixels, predicting the velocity of rectified flow.

    Args:
        transformer: The network.
        mean: Mean of the pixels in [0, 1], which latents are centred by.
        std: Standard deviation of the pixels, which latents are divided by.
    """

    def __init__(self, transformer: ImageTransformer, mean: float, std: float) -> None:
        shape = (1, SIDE, SIDE)
        super().__init__(schedule=RectifiedFlow(), kind="velocity", latent_shape=shape)
        self.transformer = transformer
        self.mean, self.std = float(mean), float(std)

    @classmethod
    def from_package(cls) -> FashionTeacher:
        """Loads the packaged weights."""
        path = resources.files("pdmd.teachers.packaged") / "weights" / "fashion.safetensors"
        with resources.as_file(path) as file:
            return cls.from_file(file)

    @classmethod
    def from_file(cls, path: str | Path) -> FashionTeacher:
        """Loads weights written by :meth:`save`, as float32.

        Args:
            path: The safetensors file.

        Raises:
            ValueError: If the file is missing, damaged or not a fashion teacher.
        """

        def build(header: Mapping[str, str], state: dict[str, Tensor]) -> FashionTeacher:
            config = json.loads(header["config"])
            transformer = ImageTransformer(**config["transformer"])
            transformer.load_state_dict(state)
            return cls(transformer, config["mean"], config["std"])

        return read_teacher("fashion", path, build)

    def save(self, path: str | Path) -> None:
        """Writes the weights, rounded to float16, and the configuration to a safetensors file."""
        config = {"transformer": self.transformer.config, "mean": self.mean, "std": self.std}
        write_teacher(self.transformer, config, path)

    @property
    def prompts(self) -> Sequence[Any]:
        """The names of the ten classes."""
        return CLASSES

    def encode(self, prompts: Sequence[Any]) -> Condition:
        """Encodes classes as a condition with ``label``.

        Args:
            prompts: Names of classes or their indices; ``None`` is the null prompt, label 10.

        Raises:
            ValueError: If a prompt is no class.
        """
        found = [CLASSES.index(p) if p in CLASSES else p for p in prompts]
        try:
            return encode_labels(found, len(CLASSES))
        except ValueError as error:
            raise ValueError(f"{error}; the classes are {', '.join(CLASSES)}") from error

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates the transformer."""
        if condition is None:
            condition = self.encode([None] * len(x_t))
        return self.transformer(x_t, t.to(x_t.dtype), labels_of(condition).to(x_t.device))

    def decode(self, x: Latents) -> Tensor:
        """Decodes latents to pictures in [0, 1], with shape :math:`(B, 1, 28, 28)`."""
        return (x * self.std + self.mean).clamp(0, 1)

    def latents(self, pictures: Tensor) -> Latents:
        """Returns the latents of pictures in [0, 1], the inverse of :meth:`decode`."""
        return (pictures - self.mean) / self.std
