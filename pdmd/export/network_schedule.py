"""The network schedule of a student: which network is evaluated at each timestep.

Phases, and routed networks within a phase, reduce to one list: decreasing timesteps, split where
the network changes. Any time between the last timestep :math:`t` of an interval and the first
timestep :math:`s` of the next is a valid boundary. The midpoint :math:`(t + s) / 2` is robust to
rounding, while a boundary on a timestep belongs to the noisier interval in some pipelines and to
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
from pdmd.diffusion.schedules import RectifiedFlow, same_process
from pdmd.distillation.adapters import AdaptedDenoiser
from pdmd.distillation.experts import Expert, OdeExpert, RenoisingExpert
from pdmd.distillation.low_rank import Factors
from pdmd.distillation.students import Student
from pdmd.distributed.weight_files import whole_tensors
from pdmd.teachers.families.layouts import PipelineLayout
from pdmd.teachers.families.pipeline_teacher import PipelineTeacher
from pdmd.teachers.families.text import TextTeacher

__all__ = [
    "EXPORT_TYPES",
    "NetworkInterval",
    "base_networks",
    "export_type",
    "pipeline_layout",
    "renoise_times",
    "midpoints",
    "network_intervals",
    "weight_type",
]

EXPORT_TYPES = ("float32", "bfloat16", "float16")
"""Types of exported weights, which every reader of pipelines and adapter files loads."""


@dataclass(frozen=True, eq=False)
class NetworkInterval:
    """An interval of times and its network.

    Attributes:
        network: The network, of a family with a pipeline layout.
        times: The timesteps at which it is evaluated, decreasing.
        adapter: The adapter over it, if any.
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

    def values(self) -> dict[str, Callable[[], Tensor]]:
        """Returns functions that read the backbone's weights where they are not in memory."""
        return {
            tensor.name: tensor.read
            for tensor in whole_tensors(self.network.backbone)
            if self.network.device.type == "meta"
        }

    def changes(self) -> dict[str, Callable[[], Tensor]]:
        """Returns functions that compute the adapter's change of each adapted weight."""
        return {
            f"{path}.weight": factors.weight_change for path, factors in self.factors().items()
        }


def network_intervals(student: Student) -> tuple[NetworkInterval, ...]:
    """Returns the intervals of a student's networks, noisiest first.

    Args:
        student: A student on the schedule of its networks, which is rectified flow or, for
            v-prediction, a discrete one, and which are of a family with a pipeline layout.

    Raises:
        ValueError: If its networks or its schedule are others.
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
    intervals = tuple(_interval(leaf, tuple(times)) for leaf, times in found)
    own = intervals[0].network
    discrete = own.kind == "v_prediction" and same_process(student.schedule, own.schedule)
    if not isinstance(student.schedule, RectifiedFlow) and not discrete:
        raise ValueError(
            "only students on RectifiedFlow, or of networks of v-prediction on their own "
            f"schedule, are exported to pipelines, got {student.schedule!r}; sample this student "
            "with pdmd"
        )
    return intervals


def _interval(leaf: Denoiser, times: tuple[float, ...]) -> NetworkInterval:
    adapter = leaf if isinstance(leaf, AdaptedDenoiser) else None
    network: Any = leaf if adapter is None else adapter.base
    layout = network.layout if isinstance(network, PipelineTeacher) else None
    if layout is not None and layout.unexported:
        raise ValueError(
            f"a {type(network).__name__} has no pipeline in diffusers that samples as it does "
            f"here: {layout.unexported}; sample its students with pdmd"
        )
    if not isinstance(network, TextTeacher) or not network.layout.exported:
        raise ValueError(
            f"a {type(network).__name__} has no pipeline in diffusers, so its students cannot be "
            "exported; export students of a model family such as qwen_image or wan"
        )
    return NetworkInterval(network, times, adapter)


def base_networks(intervals: Sequence[NetworkInterval]) -> list[TextTeacher]:
    """Returns the distinct networks of the intervals; several intervals may adapt one."""
    return list({id(interval.network): interval.network for interval in intervals}.values())


def weight_type(network: TextTeacher) -> torch.dtype:
    """Returns the dtype of a network's weights, ignoring those its family keeps in float32."""
    transformer = network.backbone
    kept = set(transformer._keep_in_fp32_modules or ())
    types = [
        parameter.dtype
        for name, parameter in transformer.named_parameters()
        if not kept & set(name.split("."))
    ]
    return types[0] if types else torch.float32


def export_type(dtype: str) -> torch.dtype | None:
    """Returns the type of exported weights by name, ``None`` for the student's own.

    Raises:
        ValueError: If diffusers does not load weights of that type.
    """
    if dtype not in ("", *EXPORT_TYPES):
        raise ValueError(
            f"expected dtype float32, bfloat16 or float16, which the exported card's lines load, "
            f"got {dtype!r:.40}"
        )
    return getattr(torch, dtype) if dtype else None


def midpoints(intervals: Sequence[NetworkInterval]) -> list[float]:
    """Returns the boundaries between intervals: midpoints of the adjacent timesteps."""
    return [
        (a.times[-1] + b.times[0]) / 2
        for a, b in zip(intervals, list(intervals)[1:], strict=False)
    ]


def pipeline_layout(intervals: Sequence[NetworkInterval]) -> PipelineLayout:
    """Returns the pipeline layout of the intervals' family."""
    layout = intervals[0].network.layout
    assert layout is not None
    return layout


def renoise_times(student: Student) -> list[float | None] | None:
    """Returns for each step the time it renoises from, or ``None`` if no step renoises.

    Raises:
        ValueError: If an expert has another sampler.
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
                f"expected 'ode' or 'renoising' experts, got {type(expert).__name__}, whose steps "
                "no pipeline takes; sample this student with pdmd"
            )
    return found if any(end is not None for end in found) else None
