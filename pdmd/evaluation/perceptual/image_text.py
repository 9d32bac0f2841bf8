r"""The agreement of pictures with their prompts: the CLIP score.

.. math:: 100 \max(\cos(e_\text{image}, e_\text{text}), 0)

References:
    Hessel et al., CLIPScore, arXiv:2104.08718 (there with the factor 2.5).
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from pdmd.evaluation.features import Preprocessing, load_frozen
from pdmd.evaluation.perceptual.measurements import (
    DecodedSamples,
    Measurement,
    MeasurementPlace,
)
from pdmd.extras import require

__all__ = ["ImageTextScore"]

TOGETHER = 64
"""Pictures that are evaluated at once."""
UNLIMITED = 10**6
"""Tokens from which on a length is none, as of tokenizers that state no limit."""


class ImageTextScore(Measurement):
    """The CLIP score of each sample, the mean over frames of a video.

    Args:
        model: An image-text model of transformers, with ``get_image_features`` and
            ``get_text_features``.
        tokenizer: Its tokenizer. Texts are padded and cut to the longest that it and the model
            take, as SigLIP's were in training, whose score would depend on the other prompts.
        preprocessing: Maps images in [0, 1] to ``pixel_values``.
        frames: Frames of a video, at equal distances.
    """

    default = "openai/clip-vit-base-patch32"

    def __init__(
        self, model: Any, tokenizer: Any, preprocessing: Preprocessing, frames: int = 4
    ) -> None:
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer
        self.preprocessing, self.frames = preprocessing, frames
        text = getattr(self.model.config, "text_config", self.model.config)
        limits = [tokenizer.model_max_length, getattr(text, "max_position_embeddings", UNLIMITED)]
        self.length = min(limits)

    @classmethod
    def load(cls, source: str, place: MeasurementPlace) -> Self:
        model, config, missing = load_frozen(source)
        if missing or not hasattr(model, "get_text_features"):
            lacks = ", ".join(missing[:3]) or "a text network"
            raise ValueError(f"{source!r} is no image-text model such as CLIP: it lacks {lacks}")
        require("metrics", "transformers")
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        except Exception as error:  # what a file states reaches a library, which raises any class
            reason = str(error).strip().split("\n")[0]
            raise ValueError(f"can't load a tokenizer from {source!r} ({reason})") from error
        return cls(model.to(place.device), tokenizer, Preprocessing.from_config(config))

    @torch.inference_mode()
    def __call__(self, samples: DecodedSamples) -> Tensor:
        """Returns scores, float32, with shape :math:`(P S, 1)`."""
        like = next(self.model.parameters())
        known: dict[str, Any] = {"padding": True}
        if self.length < UNLIMITED:
            known = {"padding": "max_length", "max_length": self.length, "truncation": True}
        tokens = self.tokenizer(samples.texts(), return_tensors="pt", **known).to(like.device)
        texts = _unit(self.model.get_text_features(**tokens))
        frames = samples.frames(self.frames)
        images = torch.cat(
            [
                _unit(
                    self.model.get_image_features(
                        pixel_values=self.preprocessing(part.to(like.device).float() / 255).to(
                            like.dtype
                        )
                    )
                )
                for part in frames.flatten(0, 1).split(TOGETHER)
            ]
        )
        each = texts.repeat_interleave(samples.seeds * frames.shape[1], 0)
        cosines = (images * each).sum(1).reshape(frames.shape[:2])
        return 100 * cosines.clamp(min=0).mean(1, keepdim=True)


def _unit(found: Any) -> Tensor:
    """Returns unit vectors; some versions of transformers return them in an output."""
    value = found if isinstance(found, Tensor) else found.pooler_output
    return functional.normalize(value.float(), dim=1)
