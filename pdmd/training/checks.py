"""Checks of the networks and losses of a phase."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.schedules import same_process

__all__ = ["check_losses", "check_same_process"]


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


def check_losses(losses: Mapping[str, Tensor], role: str, phase: int) -> None:
    """Checks that an objective returned a loss.

    Args:
        losses: The losses of the objective.
        role: The role that the objective trains.
        phase: Number of the phase, from 1.

    Raises:
        ValueError: If ``losses`` is empty.
    """
    if not losses:
        raise ValueError(
            f"the {role}'s objective has no loss in phase {phase}; add a term that is active in "
            "every phase"
        )
