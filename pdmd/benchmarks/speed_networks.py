"""The networks of the speed benchmark: three sizes, briefly pretrained on digits.

The pretraining makes the relative fake-score error, which sets the adaptive fake updates,
representative; random weights would not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pdmd.diffusion.schedules import RectifiedFlow
from pdmd.teachers.base import Teacher
from pdmd.teachers.mixture import encode_labels
from pdmd.teachers.packaged.digits import DigitsTeacher
from pdmd.teachers.packaged.mlp import MlpDenoiser
from pdmd.teachers.packaged.pretraining import digit_source, pretrain
from pdmd.teachers.packaged.transformer import ImageTransformer
from pdmd.typing import Condition, Latents

__all__ = ["CASES", "Case", "FlatDigits", "EvaluationCounter", "pretrained_digits"]

PRETRAINING_UPDATES = 300


class FlatDigits(Teacher):
    """An MLP over the digits' 64 pixels."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__(schedule=RectifiedFlow(), kind="velocity", latent_shape=(1, 8, 8))
        self.mlp = MlpDenoiser(
            dim=64, classes=10, width=width, depth=depth, schedule=self.schedule
        )

    @property
    def prompts(self) -> Sequence[Any]:
        return list(range(10))

    def encode(self, prompts: Sequence[Any]) -> Condition:
        return encode_labels(prompts, 10)

    def network(self, x_t: Latents, t: torch.Tensor, condition: Condition) -> Latents:
        return self.mlp.network(x_t.flatten(1), t, condition).unflatten(1, self.latent_shape)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Networks of one size.

    Attributes:
        summary: A description.
        build: Builds a teacher, from the digits' standard deviation.
        core: Returns the module whose calls are counted.
        batch: Batch size of a rollout.
        cycles: Cycles of each implementation at equal work.
        rounds: Turns of each efficiency setting in each of the four phases.
    """

    summary: str
    build: Callable[[float], Any]
    core: Callable[[Any], nn.Module]
    batch: int
    cycles: int
    rounds: int


def _transformer(width: int, depth: int) -> Callable[[float], DigitsTeacher]:
    return lambda std: DigitsTeacher(ImageTransformer(width=width, depth=depth, heads=4), std)


CASES = {
    "mlp": Case(
        summary="an MLP of 3 hidden layers of 256",
        build=lambda std: FlatDigits(width=256, depth=3),
        core=lambda teacher: teacher.mlp.layers,
        batch=256,
        cycles=200,
        rounds=12,
    ),
    "transformer_small": Case(
        summary="a transformer of 3 blocks of width 64, 16 tokens",
        build=_transformer(64, 3),
        core=lambda teacher: teacher.transformer,
        batch=128,
        cycles=120,
        rounds=8,
    ),
    "transformer_medium": Case(
        summary="a transformer of 6 blocks of width 256, 16 tokens",
        build=_transformer(256, 6),
        core=lambda teacher: teacher.transformer,
        batch=64,
        cycles=72,
        rounds=4,
    ),
}


@dataclass
class EvaluationCounter:
    """Counts the evaluations of a network and all its copies, as a forward hook.

    Attributes:
        forward: Samples evaluated.
        backward: Samples evaluated with gradient.
    """

    forward: int = 0
    backward: int = 0

    def __call__(self, module: nn.Module, args: Any, output: torch.Tensor) -> None:
        self.forward += len(output)
        if torch.is_grad_enabled() and output.requires_grad:
            self.backward += len(output)

    def __deepcopy__(self, memo: Any) -> EvaluationCounter:
        return self  # copies of a network share its hooks

    @property
    def forwards(self) -> int:
        """The cost in forward passes: a backward counts as two."""
        return self.forward + 2 * self.backward


def pretrained_digits(name: str, folder: Path, seed: int) -> Any:
    """Returns a frozen teacher of a size, pretrained on digits once and cached in a folder.

    Args:
        name: One of ``CASES``.
        folder: The folder of the cached weights.
        seed: The seed of the initial weights.
    """
    from safetensors.torch import load_file, save_file

    source, std = digit_source()
    path = folder / f"{name}.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        teacher = CASES[name].build(std)
    if path.exists():
        teacher.load_state_dict(load_file(path))
    else:
        teacher = pretrain(
            teacher, source, updates=PRETRAINING_UPDATES, batch_size=64, lr=1e-3, progress=False
        )
        folder.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".partial")
        save_file(teacher.state_dict(), draft)
        draft.replace(path)
    return teacher.requires_grad_(False).eval()
