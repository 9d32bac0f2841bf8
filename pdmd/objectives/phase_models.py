"""What an objective is evaluated on: the models of a phase and a rollout of its expert."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch

from pdmd.arguments import checked
from pdmd.diffusion.denoisers import Denoiser
from pdmd.distillation.phases import Phase
from pdmd.typing import Condition, Latents

__all__ = ["DrawConditions", "Models", "PhaseContext", "Rollout"]

DrawConditions: TypeAlias = Callable[[int, torch.Generator], Condition]
"""Samples conditions: a TensorDict with the given batch size, or ``None`` if unconditional."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Models:
    """The denoisers of a phase: ``real`` (the teacher), ``fake`` and ``expert`` (in training).

    Each is called as ``models.real(x_t, t, condition)`` and returns a
    :class:`~pdmd.diffusion.predictions.Prediction`.

    Attributes:
        real: The real score: the frozen teacher.
        fake: The fake score: an online model of the student's distribution.
        expert: The denoiser of the phase's expert, in training.
    """

    real: Denoiser
    fake: Denoiser
    expert: Denoiser


@dataclass(frozen=True, kw_only=True, eq=False)
class PhaseContext:
    """A phase at its start: its models, the phase itself and a sampler of conditions.

    Attributes:
        models: The denoisers of the phase.
        phase: The phase, with its times ``t_start``, ``t_end`` and ``score_range``.
        draw_conditions: Samples conditions, called as ``draw_conditions(n, generator)``.
    """

    models: Models
    phase: Phase
    draw_conditions: DrawConditions


@checked
@dataclass(frozen=True, kw_only=True, eq=False)
class Rollout:
    r"""A batch of student samples :math:`x_s` at the end of a phase, and where it came from.

    Attributes:
        x_s: The expert's output at :math:`s = t_k`, with shape :math:`(B, *)`. In an update of the
            generator its gradient reaches the expert; in one of the fake score it has none.
        condition: The conditions, with batch size :math:`(B)`, or ``None``.
        phase: The phase.
        phase_input: The expert's input :math:`x_{t_{k-1}}`, with shape :math:`(B, *)` and no
            gradient.
        exit_step: The step, from 0, after which the rollout jumped to :math:`t_k`; ``None`` if it
            took all steps.
    """

    x_s: Latents
    condition: Condition
    phase: Phase
    phase_input: Latents | None = None
    exit_step: int | None = None
