"""Reference samples of a teacher, computed once for all runs of a benchmark."""

from __future__ import annotations

from pathlib import Path

import torch

from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.sampling import sample_ode
from pdmd.files import save_tensors
from pdmd.typing import Condition, Latents

__all__ = ["reference_draws"]


def reference_draws(
    teacher: Denoiser, condition: Condition, *, steps: int, seed: int, path: Path
) -> tuple[Latents, Latents]:
    """Returns two independent draws of a teacher, computed once for all runs.

    Args:
        teacher: The teacher, guided or not.
        condition: The conditions of the samples, with batch size :math:`(B)`.
        steps: Euler steps of the teacher.
        seed: The seed of the first draw; that of the second is greater by 10.
        path: The file of the draws, which is written if it does not exist.

    Returns:
        Two batches of samples, with shape :math:`(B, *)`.
    """
    from safetensors.torch import load_file

    if not path.exists():
        draws = {
            name: sample_ode(
                teacher,
                condition,
                steps=steps,
                generator=torch.Generator().manual_seed(seed + 10 * i),
            )
            for i, name in enumerate(("first", "second"))
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(draws, path)
    draws = load_file(path)
    return draws["first"], draws["second"]
