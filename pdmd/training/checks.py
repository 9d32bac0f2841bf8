"""Checks of the networks and losses of a phase."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.schedules import same_process
from pdmd.distillation.experts import Expert
from pdmd.distillation.phases import Phase
from pdmd.objectives.base import Objective
from pdmd.objectives.loss_checks import check_losses

__all__ = ["check_own_parameters", "check_same_process", "check_update"]


def check_same_process(networks: Iterable[Denoiser], teacher: Denoiser) -> None:
    """Checks that networks share the teacher's forward process and latent shape.

    Raises:
        ValueError: If a schedule or latent shape is not the teacher's.
    """
    for network in networks:
        if not same_process(network.schedule, teacher.schedule):
            raise ValueError(
                f"a network has the schedule {network.schedule!r}, but its teacher has "
                f"{teacher.schedule!r}; build the network with schedule=teacher.schedule"
            )
        if network.latent_shape != teacher.latent_shape:
            raise ValueError(
                f"a network takes latents of shape {network.latent_shape}, but its teacher "
                f"takes {teacher.latent_shape}; build the network with "
                "latent_shape=teacher.latent_shape"
            )


def check_own_parameters(experts: Iterable[Expert]) -> None:
    """Checks that experts have no parameters besides those of their networks.

    Networks alone are placed, trained, averaged and saved.

    Raises:
        ValueError: If one has.
    """
    for expert in experts:
        networks = {id(p) for p in expert.denoiser.parameters()}
        for name, parameter in expert.named_parameters():
            if id(parameter) not in networks:
                raise ValueError(
                    f"the {type(expert).__name__} has the parameter {name!r} of its own, which "
                    "would neither be trained nor saved; make it one of the network (a Denoiser "
                    "around it), which init=... provides"
                )


def check_update(objective: Objective, losses: Any, role: str, phase: Phase) -> dict[str, Tensor]:
    """Checks that an objective returned a loss that trains; warns of others beside it.

    Args:
        objective: The objective.
        losses: What it returned.
        role: The role that the objective trains.
        phase: The phase.

    Returns:
        The losses.

    Raises:
        TypeError: If they are not tensors by name.
        ValueError: If there is none, one is not a real scalar, or none has a gradient.
    """
    kind = type(objective).__name__
    name = getattr(objective, "name", "")  # a wrapper need not have one
    check_losses(f"{name!r} ({kind})" if name else kind, losses, phase)
    found: dict[str, Tensor] = dict(losses)
    if not found:
        raise ValueError(
            f"the {role}'s objective has no loss in phase {phase.number}; add a term that is "
            "active in every phase"
        )
    if not any(loss.requires_grad for loss in found.values()):
        raise ValueError(
            f"no loss of the {role}'s objective has a gradient in phase {phase.number} "
            f"({', '.join(found)}); compute one from rollout.x_s or the network in training, "
            "without detach() or no_grad()"
        )
    for name, loss in found.items():
        if role == "generator" and not loss.requires_grad:
            warnings.warn(
                f"the loss {name!r} of the generator's objective has no gradient in phase "
                f"{phase.number}, so it trains nothing; compute it from rollout.x_s, without "
                "detach() or no_grad()",
                stacklevel=2,
            )
    return found
