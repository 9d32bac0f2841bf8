r"""Qwen-Image: a text-to-image transformer of 20 B parameters.

Time, tokens, guidance and shift are those of :mod:`~pdmd.teachers.families.qwen_networks`.

References:
    Wu et al., Qwen-Image Technical Report, arXiv:2508.02324.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pdmd.teachers.conditioning.cut_texts import note_cut_texts
from pdmd.teachers.families.qwen_networks import LAYOUT, SIZES, QwenNetworkTeacher
from pdmd.typing import Condition, Latents

__all__ = ["QwenImageTeacher"]

LONGEST = 512
"""Tokens to which a call of the pipeline cuts texts; ``encode_prompt`` by itself keeps 1024."""


class QwenImageTeacher(QwenNetworkTeacher):
    r"""Qwen-Image over latents of shape :math:`(16, H / 8, W / 8)`.

    Every time in [0, 1] can be evaluated; the family's own sampler ends at 0.02. Texts are cut to
    512 tokens. Arguments and errors are those of
    :class:`~pdmd.teachers.families.qwen_networks.QwenNetworkTeacher`.
    """

    layout = LAYOUT
    released = SIZES

    @classmethod
    def encode_texts(cls, pipeline: Any, texts: list[str], length: int | None) -> dict[str, Any]:
        embeddings, mask = pipeline.encode_prompt(texts, max_sequence_length=LONGEST)
        if mask is None:  # the pipeline's value for a mask of ones
            mask = embeddings.new_ones(embeddings.shape[:2])
        full = mask.bool().sum(1) == LONGEST
        note_cut_texts([text for text, cut in zip(texts, full.tolist(), strict=True) if cut])
        return {"prompt": embeddings, "mask": mask.bool()}

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Packs, evaluates and unpacks; the time is the network's own."""
        return self.evaluate(x_t, t, self.conditioned(condition, x_t))
