"""Pretraining of the clips teacher: flow matching on rendered clips.

The prompt is dropped with probability 0.1, for guidance. Nothing is trained but the transformer,
whose word embeddings are the text encoder. Times are shifted towards noise like those of samples
(``shift`` of :class:`~pdmd.teachers.base.Teacher`): a clip repeats its glyph in every frame, so
that glyph and motion are decided at times where a single pixel is noise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pdmd.teachers.packaged.clip_world import CLIP_NAMES, ClipBank
from pdmd.teachers.packaged.clips import LONGEST, WORDS, ClipsTeacher
from pdmd.teachers.packaged.pretraining import Source, pretrain
from pdmd.teachers.packaged.video_transformer import VideoTransformer
from pdmd.typing import Condition

__all__ = ["TRANSFORMER", "clip_source", "pretrain_clips"]

TRANSFORMER: dict[str, Any] = {"patch": (8, 4), "width": 128, "depth": 3}
"""Configuration of the transformer: 16 tokens, each of 4 x 4 pixels in all frames."""


def clip_source(teacher: ClipsTeacher, bank: ClipBank, dropout: float = 0.1) -> Source:
    """Returns a source of clips as latents, with their prompts.

    Args:
        teacher: The teacher, for its scale and its words.
        bank: The clips.
        dropout: Probability of the null prompt.
    """
    prompts = teacher.encode([*CLIP_NAMES, None])
    assert prompts is not None

    def source(n: int, generator: torch.Generator) -> tuple[Tensor, Condition]:
        clips = bank.draw(n, generator)
        dropped = torch.rand(n, generator=generator) < dropout
        rows = clips.character.masked_fill(dropped, len(CLIP_NAMES))
        return teacher.latents(clips.pictures), prompts[rows]

    return source


def pretrain_clips(
    *,
    updates: int = 5000,
    batch_size: int = 32,
    lr: float = 1.5e-3,
    seed: int = 0,
    progress: bool = True,
) -> ClipsTeacher:
    """Pretrains the clips teacher.

    With default arguments, the network and the training are those of the packaged weights.

    Args:
        updates: Number of optimizer updates.
        batch_size: Number of clips per update.
        lr: Peak learning rate of Adam.
        seed: Seed of the weights and of the samples.
        progress: Whether to show a progress bar.

    Returns:
        The teacher, frozen.
    """
    bank = ClipBank()
    sample = bank.draw(2000, torch.Generator().manual_seed(seed)).pictures
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer = VideoTransformer(**TRANSFORMER, vocabulary=len(WORDS), words=LONGEST)
    teacher = ClipsTeacher(transformer, float(sample.mean()), float(sample.std()))
    return pretrain(
        teacher,
        clip_source(teacher, bank),
        updates=updates,
        batch_size=batch_size,
        lr=lr,
        ema=0.999,
        shift=teacher.shift,
        seed=seed,
        progress=progress,
    )
