"""Stages: which network a student asks at each time of its grid.

Phases, and routed networks within a phase, come down to one list: a falling grid, cut where the
network changes. Between the last time of one stage and the first of the next any time serves as
their boundary, and the midpoint :math:`(t + s) / 2` is the safest: no rounding of a time on the
grid reaches it, while a boundary on the grid belongs to the noisier side in some pipelines and to
the cleaner one in others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.routers import RoutedDenoiser
from pdmd.diffusion.schedules import RectifiedFlow
from pdmd.distillation.adapters import AdaptedDenoiser
from pdmd.distillation.experts import Expert, OdeExpert, RenoisingExpert
from pdmd.distillation.low_rank import Factors
from pdmd.distillation.students import Student
from pdmd.teachers.families.layouts import PipelineLayout
from pdmd.teachers.families.text import TextTeacher

__all__ = ["Stage", "bases", "jumps", "layout_of", "midpoints", "stages", "weight_type"]


@dataclass(frozen=True, eq=False)
class Stage:
    """A run of times that one network serves.

    Attributes:
        network: The network, of a family with a layout.
        times: The times of the grid at which it is asked, falling.
        adapter: The adapter over it, if it has one.
    """

    network: TextTeacher
    times: tuple[float, ...]
    adapter: AdaptedDenoiser | None = None

    def factors(self) -> dict[str, Factors]:
        """Returns the adapter's factors by the path of their linear map in the backbone."""
        if self.adapter is None:
            return {}
        return {
            path.removeprefix("backbone."): factors
            for path, factors in self.adapter.factors().items()
        }

    def weights(self) -> dict[str, Tensor]:
        """Returns the backbone's weights, without the adapter."""
        return self.network.backbone.state_dict()

    def changes(self) -> dict[str, Callable[[], Tensor]]:
        """Returns what makes the adapter's change of each weight that it changes."""
        return {f"{path}.weight": factors.change for path, factors in self.factors().items()}


def stages(student: Student) -> tuple[Stage, ...]:
    """Returns a student's stages, noisiest first.

    Args:
        student: A student whose networks are those of a family with a layout.

    Raises:
        ValueError: If they are not, or the student's process is not rectified flow.
    """
    found: list[tuple[Denoiser, list[float]]] = []
    for expert in cast("list[Expert]", list(student.experts)):
        for t in expert.phase.timesteps:
            leaf: Any = expert.denoiser
            while isinstance(leaf, RoutedDenoiser):
                leaf = leaf.denoisers[int(leaf.router(t))]
            if found and found[-1][0] is leaf:
                found[-1][1].append(t)
            else:
                found.append((leaf, [t]))
    made = tuple(_stage(leaf, tuple(times)) for leaf, times in found)
    if not isinstance(student.schedule, RectifiedFlow):
        raise ValueError(
            f"pipelines of flow families are written, and this student is of "
            f"{student.schedule!r}; sample it with pdmd"
        )
    return made


def _stage(leaf: Denoiser, times: tuple[float, ...]) -> Stage:
    adapter = leaf if isinstance(leaf, AdaptedDenoiser) else None
    network: Any = leaf if adapter is None else adapter.base
    if not isinstance(network, TextTeacher) or not network.layout.exported:
        raise ValueError(
            f"a {type(network).__name__} has no pipeline in diffusers, so its students are not "
            "exported; those of model families are, such as qwen_image and wan"
        )
    return Stage(network, times, adapter)


def bases(found: Sequence[Stage]) -> list[TextTeacher]:
    """Returns the networks of stages, each once; several stages may adapt one."""
    return list({id(stage.network): stage.network for stage in found}.values())


def weight_type(network: TextTeacher) -> torch.dtype:
    """Returns the type of a network's weights, but for those that its family keeps in float32."""
    transformer = network.backbone
    kept = set(transformer._keep_in_fp32_modules or ())
    types = [
        parameter.dtype
        for name, parameter in transformer.named_parameters()
        if not kept & set(name.split("."))
    ]
    return types[0] if types else torch.float32


def midpoints(found: Sequence[Stage]) -> list[float]:
    """Returns the boundaries between stages."""
    return [(a.times[-1] + b.times[0]) / 2 for a, b in zip(found, list(found)[1:], strict=False)]


def layout_of(found: Sequence[Stage]) -> PipelineLayout:
    """Returns the layout of stages, which are all of one family."""
    return found[0].network.layout


def jumps(student: Student) -> list[float | None] | None:
    """Returns for each step where it jumps before it diffuses back, or ``None`` if no step does.

    Raises:
        ValueError: If an expert steps in a way of its own.
    """
    found: list[float | None] = []
    for expert in cast("list[Expert]", list(student.experts)):
        steps = expert.phase.steps
        if isinstance(expert, RenoisingExpert):
            found += [expert.phase.t_end] * (steps - 1) + [None]
        elif isinstance(expert, OdeExpert) or steps == 1:
            found += [None] * steps
        else:
            raise ValueError(
                f"pipelines take the steps of an 'ode' or a 'renoising' expert, not of a "
                f"{type(expert).__name__}; sample this student with pdmd"
            )
    return found if any(end is not None for end in found) else None
