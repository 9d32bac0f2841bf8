"""Networks of students that are not copies of their teacher: smaller ones, or of another class.

Expert, fake score and teacher meet in their latents, their schedule and their conditions only, so
an expert may be any network that takes the same. A prediction of another kind is converted where
it is used (:mod:`pdmd.diffusion.predictions`), and a network on another schedule is evaluated at
the time of equal log-SNR (:mod:`pdmd.teachers.with_schedule`).

Distribution matching compares scores where the student's samples are; from random weights these
are nowhere near the data, and its gradients say little. Such a network first regresses on the
teacher (:mod:`pdmd.objectives.regression`), in a run of its own from which the next one starts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.schedules import same_process
from pdmd.distillation.adapters import adapted_parts
from pdmd.distributed.weight_sources import is_outline, outline
from pdmd.teachers.base import teachers
from pdmd.teachers.with_schedule import DenoiserWithSchedule
from pdmd.typing import Condition

__all__ = ["check_conditions", "matched", "random_weights"]


def matched(network: Denoiser, teacher: Denoiser) -> Denoiser:
    """Returns a network on a teacher's schedule, for experts of its distillation.

    Args:
        network: The network.
        teacher: The teacher.

    Returns:
        The network, or :class:`~pdmd.teachers.with_schedule.DenoiserWithSchedule` around it.

    Raises:
        ValueError: If it has no weights, takes other latents, or its schedule does not reach pure
            noise on the teacher's.
    """
    name = type(network).__name__
    if not any(True for _ in network.parameters()):
        raise ValueError(f"the student's network, a {name}, has no weights to train")
    if network.latent_shape != teacher.latent_shape:
        raise ValueError(
            f"the student's network, a {name}, takes latents of shape {network.latent_shape}, and "
            f"the teacher's are {teacher.latent_shape}; choose a network and a size of the same "
            "latents"
        )
    if not same_process(network.schedule, teacher.schedule):
        network = DenoiserWithSchedule(network, teacher.schedule)
    low, high = network.time_range
    if low > teacher.time_range[0] or high < teacher.time_range[1]:
        raise ValueError(
            f"the student's network, a {name}, is defined for times from {low:.4g} to {high:.4g} "
            f"of the teacher's schedule, which has {teacher.time_range[0]:.4g} to "
            f"{teacher.time_range[1]:.4g}; put both on another schedule (teacher.schedule)"
        )
    return network


@torch.no_grad()
def check_conditions(network: Denoiser, condition: Condition) -> None:
    """Checks that a network takes a teacher's conditions, without computing a value.

    Args:
        network: The network.
        condition: A condition of the teacher, with batch size :math:`(1)`, or ``None``.

    Raises:
        ValueError: If it does not.
    """
    if adapted_parts(network):  # over networks that the teacher's conditions trained
        return
    sketch = network if is_outline(network) else outline(network)
    for module in sketch.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to("meta"))
    given: Any = None if condition is None else condition.apply(_meta)
    x = torch.empty(1, *network.latent_shape, device="meta")
    t = torch.empty(1, dtype=torch.float64, device="meta")
    try:
        for leaf in _leaves(sketch):  # a router would read the time
            leaf.network(x, t, given)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        fields = (
            "none"
            if condition is None
            else ", ".join(f"{k} {tuple(v.shape[1:])}" for k, v in _tensors(condition))
        )
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(
            f"the student's network, a {type(network).__name__}, does not take the conditions of "
            f"the teacher ({fields}): {first}; choose a network of the same text encoder"
        ) from error


def random_weights(name: str, arguments: dict[str, Any]) -> bool:
    """Returns whether a registered teacher has random weights, as it is loaded from no folder.

    Args:
        name: Its registered name.
        arguments: Its arguments.
    """
    layout = getattr(getattr(teachers[name], "__self__", None), "layout", None)
    return layout is not None and not arguments.get("folder") and not layout.folder


def _leaves(network: nn.Module) -> list[Denoiser]:
    """Returns the denoisers in a network that contain no other."""
    found = [module for module in network.modules() if isinstance(module, Denoiser)]
    return [one for one in found if sum(other in found for other in one.modules()) == 1]


def _meta(value: Tensor) -> Tensor:
    return value.to("meta")


def _tensors(condition: Any) -> list[tuple[str, Tensor]]:
    return [(str(k), v) for k, v in condition.items() if isinstance(v, Tensor)]
