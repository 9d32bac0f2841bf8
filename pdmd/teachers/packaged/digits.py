r"""The digits teacher: a class-conditional rectified-flow transformer with packaged weights.

scikit-learn's digits are 1797 handwritten digits of 8 x 8 pixels. Latents are pixels scaled to
:math:`[-1, 1]` and divided by their standard deviation. ``pdmd pretrain digits`` reproduces the
weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdmd.diffusion.schedules import RectifiedFlow
from pdmd.extras import require
from pdmd.files import save_tensors
from pdmd.teachers.base import Teacher
from pdmd.teachers.mixture import encode_labels
from pdmd.teachers.packaged.teacher_files import read_teacher
from pdmd.teachers.packaged.transformer import ImageTransformer
from pdmd.typing import Condition, Latents, labels_of

__all__ = ["DigitsTeacher", "load_digit_images"]


class DigitsTeacher(Teacher):
    """A small image transformer over 8 x 8 digits, predicting the velocity of rectified flow.

    Args:
        transformer: The network.
        std: Standard deviation of the pixels, by which latents are divided.
    """

    def __init__(self, transformer: ImageTransformer, std: float) -> None:
        super().__init__(schedule=RectifiedFlow(), kind="velocity", latent_shape=(1, 8, 8))
        self.transformer = transformer
        self.std = float(std)

    @classmethod
    def from_package(cls) -> DigitsTeacher:
        """Loads the packaged weights."""
        path = resources.files("pdmd.teachers.packaged") / "weights" / "digits.safetensors"
        with resources.as_file(path) as file:
            return cls.from_file(file)

    @classmethod
    def from_file(cls, path: str | Path) -> DigitsTeacher:
        """Loads weights written by :meth:`save`.

        Args:
            path: The safetensors file.

        Raises:
            ValueError: If the file is missing, damaged or not a digits teacher.
        """

        def build(header: Mapping[str, str], state: dict[str, Tensor]) -> DigitsTeacher:
            transformer = ImageTransformer(**json.loads(header["config"]))
            transformer.load_state_dict(state)
            return cls(transformer, float(header["std"]))

        return read_teacher("digits", path, build)

    def save(self, path: str | Path) -> None:
        """Writes the weights and the configuration to one safetensors file."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        metadata = {"config": json.dumps(self.transformer.config), "std": repr(self.std)}
        state = {k: v.contiguous() for k, v in self.transformer.state_dict().items()}
        save_tensors(state, path, metadata=metadata)

    @property
    def prompts(self) -> Sequence[Any]:
        """The digits 0 to 9."""
        return list(range(10))

    def encode(self, prompts: Sequence[Any]) -> Condition:
        """Encodes digits as a condition with ``label``; the null prompt ``None`` is label 10."""
        return encode_labels(prompts, 10)

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates the transformer."""
        if condition is None:
            condition = self.encode([None] * len(x_t))
        return self.transformer(x_t, t.to(x_t.dtype), labels_of(condition).to(x_t.device))

    def decode(self, x: Latents) -> Tensor:
        """Decodes latents to images in [0, 1], with shape :math:`(B, 1, 8, 8)`."""
        return ((x * self.std + 1) / 2).clamp(0, 1)


def load_digit_images(std: float | None = None) -> tuple[Tensor, Tensor, float]:
    """Loads scikit-learn's digits as latents.

    Args:
        std: The standard deviation to divide by; that of the pixels if ``None``.

    Returns:
        Latents, with shape :math:`(1797, 1, 8, 8)`; labels, int64, with shape :math:`(1797)`; and
        the standard deviation.
    """
    require("report", "sklearn")
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    pixels = torch.tensor(data.data, dtype=torch.float32) / 8 - 1
    std = float(pixels.std()) if std is None else std
    return (pixels / std).reshape(-1, 1, 8, 8), torch.tensor(data.target), std
