r"""Real samples read from a store, diffused to :math:`x_s = \alpha_s x_0 + \sigma_s \varepsilon`.

A store that ``pdmd embed --latents COLUMN`` writes has clean latents beside the embeddings of
their prompts, a row each (:mod:`pdmd.teachers.conditioning.encoded_samples`). Rows are read from
memory-mapped files as they are drawn: each rank reads its own.

References:
    Yin et al., DMD2, arXiv:2405.14867, Section 4.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pdmd.arguments import checked
from pdmd.diffusion.denoisers import Denoiser
from pdmd.objectives.base import PhaseContext
from pdmd.objectives.real_samples import DataSamples, DrawSamples, RealSamples
from pdmd.randomness import randint
from pdmd.teachers.conditioning.embeddings import StoredEmbeddings
from pdmd.teachers.conditioning.encoded_samples import LATENTS
from pdmd.typing import LENGTHS, Condition, Latents

if TYPE_CHECKING:
    from pdmd.teachers.conditioning.embeddings.stored import StoredConditions

__all__ = ["StoredSamples"]


@checked
class StoredSamples(RealSamples):
    """Diffused real samples of a store, with the prompts that they belong to.

    Args:
        folder: Folder or URL of the store, written by ``pdmd embed --latents COLUMN``.
        cache: Folder of local copies; ``pdmd/embeddings`` in the user's cache folder if empty.
    """

    def __init__(self, folder: str, cache: str = "") -> None:
        self.folder, self.cache = folder, cache

    def check(self, teacher: Denoiser) -> None:
        """Checks that the store has latents of the teacher's shape.

        Raises:
            ValueError: If it has none, others, or cannot be read.
        """
        self._open(teacher.latent_shape)

    def prepare(self, context: PhaseContext, generator: torch.Generator) -> DrawSamples:
        store = self._open(context.models.real.latent_shape)
        rows = store.conditions(store.prompts)
        example = context.draw_conditions(1, generator)
        self._check_keys(rows, example)
        number = int(rows.batch_size[0])

        def draw(n: int, generator: torch.Generator) -> tuple[Latents, Condition]:
            found = rows[randint(number, n, generator)]
            latents = found[LATENTS].float()
            return latents, None if example is None else found.exclude(LATENTS)

        return DataSamples(draw).prepare(context, generator)

    def _open(self, shape: tuple[int, ...]) -> StoredEmbeddings:
        store = StoredEmbeddings(self.folder, cache=self.cache)
        stored = store.shapes.get(LATENTS)
        if stored is None:
            raise ValueError(
                f"{self.folder} has prompts without real samples; write a store of both by "
                "'pdmd embed TABLE --latents COLUMN'"
            )
        if tuple(stored) != tuple(shape):
            raise ValueError(
                f"the real samples in {self.folder} have latents of shape {tuple(stored)}, and "
                f"the teacher's are {tuple(shape)}; embed them for this teacher and size"
            )
        return store

    def _check_keys(self, rows: StoredConditions, example: Condition) -> None:
        if example is None:
            return
        stored = set(rows[torch.tensor([0])].keys()) - {LATENTS, LENGTHS}
        expected = set(example.keys()) - {LENGTHS}
        if stored != expected:
            raise ValueError(
                f"the conditions in {self.folder} have the fields {sorted(map(str, stored))}, and "
                f"those of training have {sorted(map(str, expected))}; embed the samples by the "
                "same teacher"
            )
