r"""The clips teacher: a small text-to-video rectified flow with packaged weights.

A prompt is the name of a character, and a sample a clip of 8 frames of 16 x 16 pixels in which it
moves (:mod:`pdmd.teachers.packaged.clip_world`). Latents are pixels, less their mean and divided
by their standard deviation. ``pdmd pretrain clips`` reproduces the weights.
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
from pdmd.teachers.base import Teacher
from pdmd.teachers.packaged.clip_world import CLIP_FRAMES, CLIP_NAMES, CLIP_SIDE
from pdmd.teachers.packaged.teacher_files import read_teacher, write_teacher
from pdmd.teachers.packaged.video_transformer import VideoTransformer
from pdmd.typing import Condition, Latents

__all__ = ["WORDS", "ClipsTeacher"]

WORDS = ("", *sorted({word for name in CLIP_NAMES for word in name.split()}))
"""The words of all prompts, by token; token 0 is no word."""

LONGEST = max(len(name.split()) for name in CLIP_NAMES)


class ClipsTeacher(Teacher):
    """A small video transformer over clips, predicting the velocity of rectified flow.

    Args:
        transformer: The network.
        mean: Mean of the pixels, which latents lack.
        std: Standard deviation of the pixels, by which latents are divided.
        prompts: The default prompts of a distillation.
    """

    shift = 3.0

    def __init__(
        self,
        transformer: VideoTransformer,
        mean: float,
        std: float,
        prompts: Sequence[str] = CLIP_NAMES,
    ) -> None:
        shape = (1, CLIP_FRAMES, CLIP_SIDE, CLIP_SIDE)
        super().__init__(schedule=RectifiedFlow(), kind="velocity", latent_shape=shape)
        self.transformer = transformer
        self.mean, self.std = float(mean), float(std)
        self._prompts = tuple(prompts)

    @classmethod
    def from_package(cls, prompts: Sequence[str] = CLIP_NAMES) -> ClipsTeacher:
        """Loads the packaged weights.

        Args:
            prompts: The default prompts of a distillation; the names of all characters.
        """
        path = resources.files("pdmd.teachers.packaged") / "weights" / "clips.safetensors"
        with resources.as_file(path) as file:
            return cls.from_file(file, prompts)

    @classmethod
    def from_file(cls, path: str | Path, prompts: Sequence[str] = CLIP_NAMES) -> ClipsTeacher:
        """Loads weights written by :meth:`save`, as float32.

        Args:
            path: The safetensors file.
            prompts: The default prompts of a distillation.

        Raises:
            ValueError: If the file is missing, damaged or not a clips teacher.
        """

        def build(header: Mapping[str, str], state: dict[str, Tensor]) -> ClipsTeacher:
            config = json.loads(header["config"])
            transformer = VideoTransformer(**config["transformer"])
            transformer.load_state_dict(state)
            return cls(transformer, config["mean"], config["std"], prompts)

        return read_teacher("clips", path, build)

    def save(self, path: str | Path) -> None:
        """Writes the weights in half precision and the configuration to one safetensors file."""
        config = {"transformer": self.transformer.config, "mean": self.mean, "std": self.std}
        write_teacher(self.transformer, config, path)

    @property
    def prompts(self) -> Sequence[Any]:
        """The default prompts: the names of all characters, unless others were given."""
        return list(self._prompts)

    def encode(self, prompts: Sequence[Any]) -> Condition:
        """Encodes prompts as a condition with ``tokens``, int64, with shape :math:`(B, 4)`.

        Args:
            prompts: Texts of at most four of :data:`WORDS`, in any case; ``None`` is the null
                prompt, without words.

        Raises:
            ValueError: If a prompt has other words, or too many.
        """
        from tensordict import TensorDict

        tokens = torch.zeros(len(prompts), LONGEST, dtype=torch.int64)
        for row, prompt in zip(tokens, prompts, strict=True):
            words = [] if prompt is None else str(prompt).upper().split()
            unknown = [word for word in words if word not in WORDS]
            if unknown or len(words) > LONGEST or words == [] and prompt is not None:
                raise ValueError(
                    f"clips are of prompts of 1 to {LONGEST} of the words "
                    f"{', '.join(WORDS[1:])}; got {prompt!r}"
                )
            row[: len(words)] = torch.tensor([WORDS.index(word) for word in words]).long()
        return TensorDict({"tokens": tokens}, batch_size=[len(prompts)])

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates the transformer."""
        if condition is None:
            condition = self.encode([None] * len(x_t))
        assert condition is not None
        tokens: Any = condition["tokens"]
        return self.transformer(x_t, t.to(x_t.dtype), tokens.to(x_t.device))

    def latents(self, pictures: Tensor) -> Latents:
        """Returns the latents of clips in [0, 1], with shape :math:`(B, 1, 8, 16, 16)`."""
        return (pictures - self.mean) / self.std

    def decode(self, x: Latents) -> Tensor:
        """Decodes latents to clips in [0, 1], with shape :math:`(B, 1, 8, 16, 16)`."""
        return (x * self.std + self.mean).clamp(0, 1)
