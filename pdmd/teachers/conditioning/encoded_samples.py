"""Real samples with their prompts, encoded by a VAE and a text encoder, for stores.

A real sample is an :class:`~pdmd.teachers.conditioning.image_prompts.ImagePrompt`: a text, and the
picture or video that it describes. Its condition has one more field, :data:`LATENTS`, the sample's
clean latents. So a store of them is written, verified and copied as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pdmd.files import own_digest
from pdmd.teachers.conditioning.fingerprints import encoder_fingerprint
from pdmd.teachers.conditioning.frames import fit_frame, read_frames, to_pixels
from pdmd.teachers.conditioning.image_prompts import ImagePrompt
from pdmd.teachers.conditioning.prompts import Prompts, check_finite

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = ["LATENTS", "EncodedSamples"]

LATENTS = "latents"
"""The field of a condition that has the sample's clean latents."""


class EncodedSamples(Prompts):
    """Encodes real samples: their prompts, and their pictures or videos as latents.

    A picture is scaled to cover the size of a sample, and cropped in its centre; of a video the
    first frames are taken.

    Args:
        texts: Encodes the prompts; one that takes first images receives the first frame.
        encode: Maps pixels in [0, 1], of shape :math:`(B, 3, H, W)` or :math:`(B, 3, F, H, W)`, to
            the network's clean latents.
        size: ``height`` and ``width`` in pixels, and of videos ``frames``.
        latent_shape: The shape of a sample's latents.
        folder: Folder or hub name of the pipeline, for the fingerprint of the encoders.

    Raises:
        ValueError: If the size is not known.
    """

    def __init__(
        self,
        texts: Prompts,
        encode: Callable[[Tensor], Tensor],
        *,
        size: Mapping[str, Any],
        latent_shape: Sequence[int],
        folder: str | Path = "",
    ) -> None:
        if not {"height", "width"} <= size.keys():
            raise ValueError("the teacher does not state the height and width of its samples")
        self.texts, self._encode_pixels = texts, encode
        self.size = {k: int(size[k]) for k in ("height", "width", "frames") if k in size}
        self.latent_shape, self._folder = tuple(latent_shape), folder

    @property
    def prompts(self) -> Sequence[Any]:
        """The default prompts of the text encoder."""
        return self.texts.prompts

    @property
    def image_keys(self) -> tuple[str, ...]:
        return (*self.texts.image_keys, LATENTS)

    def fingerprint(self) -> str | None:
        """Returns a digest of the text encoder, the VAE and the size of samples."""
        vae = encoder_fingerprint(self._folder, images=True) if self._folder else None
        texts = self.texts.fingerprint()
        return own_digest({"texts": texts, "vae": vae, "size": self.size}) if vae else None

    @torch.no_grad()
    def encode(self, prompts: Sequence[Any]) -> TensorDict:
        """Encodes samples; either all or none of them are ``None``.

        Raises:
            ValueError: If one is not an :class:`ImagePrompt`, its picture cannot be read or is a
                video that is too short, or its latents are not of the teacher's shape or not
                finite.
        """
        if all(prompt is None for prompt in prompts):
            return self.texts.encode(prompts)
        for prompt in prompts:
            if not isinstance(prompt, ImagePrompt):
                raise ValueError(f"a sample is a text with its picture or video, got {prompt!r}")
        number = self.size.get("frames", 1)
        size = self.size["height"], self.size["width"]
        clips = [[fit_frame(frame, *size) for frame in _frames(p, number)] for p in prompts]
        pairs, first = zip(prompts, clips, strict=True), bool(self.texts.image_keys)
        texts: list[Any] = [ImagePrompt(p.text, clip[0]) if first else p.text for p, clip in pairs]
        condition = self.texts.encode(texts)
        condition[LATENTS] = torch.cat([self._latents(clip) for clip in clips])
        check_finite(condition, [p.text for p in prompts])
        return condition

    def _latents(self, clip: Sequence[Any]) -> Tensor:
        pixels = torch.stack([to_pixels(frame) for frame in clip], 1)
        pixels = pixels if "frames" in self.size else pixels[:, 0]
        latents = self._encode_pixels(pixels[None])
        if tuple(latents.shape[1:]) != self.latent_shape:
            raise ValueError(
                f"the VAE gives latents of shape {tuple(latents.shape[1:])} for samples of "
                f"{self.size}, and the network takes {self.latent_shape}"
            )
        return latents.cpu()


def _frames(prompt: ImagePrompt, number: int) -> list[Any]:
    return [prompt.picture()] if number == 1 else read_frames(prompt.image, number)
