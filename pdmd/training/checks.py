"""Checks of what a phase trains on, with errors that name the remedy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.schedules import same_process

__all__ = ["check_losses", "check_same_process"]


def check_same_process(networks: Iterable[Denoiser], teacher: Denoiser) -> None:
    """Checks that networks run on a teacher's forward process and latents.

    Raises:
        ValueError: If a schedule or latent shape is not the teacher's.
    """
    for network in networks:
        if not same_process(network.schedule, teacher.schedule):
            raise ValueError(
                f"a network runs on {network.schedule!r}, but its teacher on "
                f"{teacher.schedule!r}; build the network with schedule=teacher.schedule"
            )
        if network.latent_shape != teacher.latent_shape:
            raise ValueError(
                f"a network takes latents of shape {network.latent_shape}, but its teacher "
                f"predicts {teacher.latent_shape}; build the network for the teacher's"
            )


def check_losses(losses: Mapping[str, Tensor], role: str, phase: int) -> None:
    """Checks that an objective returned a loss.

    Args:
        losses: What it returned.
        role: Whose objective it is.
        phase: Number of the phase, from 1.

    Raises:
        ValueError: If there is none.
    """
    if not losses:
        raise ValueError(
            f"the {role}'s objective has no loss in phase {phase}; add a term that is active in "
            "every phase"
        )
