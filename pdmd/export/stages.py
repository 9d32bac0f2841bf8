"""Stages: which network a student asks at each time of its grid.

Phases, and routed networks within a phase, come down to one list: a falling grid, cut where the
network changes. Between the last time of one stage and the first of the next any time serves as
their boundary, and the midpoint :math:`(t + s) / 2` is the safest: no rounding of a time on the
grid reaches it, while a boundary on the grid belongs to the noisier side in some pipelines and to
the cleaner one in others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from pdmd.denoisers import Denoiser
from pdmd.experts import Expert, OdeExpert, RenoisingExpert
from pdmd.routers import RoutedDenoiser
from pdmd.schedules import RectifiedFlow
from pdmd.students import Student
from pdmd.teachers.layouts import PipelineLayout
from pdmd.teachers.text import TextTeacher

__all__ = ["Stage", "jumps", "layout_of", "midpoints", "stages"]


@dataclass(frozen=True, eq=False)
class Stage:
    """A run of times that one network serves.

    Attributes:
        network: The network, of a family with a layout.
        times: The times of the grid at which it is asked, falling.
    """

    network: TextTeacher
    times: tuple[float, ...]


def stages(student: Student) -> tuple[Stage, ...]:
    """Returns a student's stages, noisiest first.

    Args:
        student: A student whose networks are those of a family with a layout.

    Raises:
        ValueError: If they are not, or the student's process is not rectified flow.
    """
    if not isinstance(student.schedule, RectifiedFlow):
        raise ValueError(
            f"pipelines walk rectified flow, and this student is of {student.schedule!r}; sample "
            "it with pdmd"
        )
    found: list[tuple[TextTeacher, list[float]]] = []
    for expert in cast("list[Expert]", list(student.experts)):
        for t in expert.phase.timesteps:
            leaf = _leaf(expert.denoiser, t)
            if found and found[-1][0] is leaf:
                found[-1][1].append(t)
            else:
                found.append((leaf, [t]))
    return tuple(Stage(leaf, tuple(times)) for leaf, times in found)


def midpoints(found: Sequence[Stage]) -> list[float]:
    """Returns the boundaries between stages."""
    return [(a.times[-1] + b.times[0]) / 2 for a, b in zip(found, list(found)[1:], strict=False)]


def layout_of(found: Sequence[Stage]) -> PipelineLayout:
    """Returns the layout of stages, which are all of one family."""
    layout = found[0].network.layout
    assert layout is not None
    return layout


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


def _leaf(denoiser: Denoiser, t: float) -> TextTeacher:
    leaf: Any = denoiser
    while isinstance(leaf, RoutedDenoiser):
        leaf = leaf.denoisers[int(leaf.router(t))]
    if not isinstance(leaf, TextTeacher) or leaf.layout is None:
        raise ValueError(
            f"a {type(leaf).__name__} has no pipeline in diffusers, so its students are not "
            "exported; those of a family with a layout are, such as qwen_image and wan"
        )
    return leaf
