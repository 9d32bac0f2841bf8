"""The decoders of LTX-2: of videos by its VAE, of sounds by another VAE and a vocoder."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdmd.extras import require
from pdmd.teachers.families.pipeline_checks import check_weights
from pdmd.teachers.families.pipelines import configuration, dtype_argument, reporting
from pdmd.teachers.families.vaes import load_decoder
from pdmd.typing import Latents

__all__ = ["LTX2Decoder"]


class LTX2Decoder:
    """Decodes latents of videos, and tokens of sounds; each part is loaded on the first call.

    Args:
        vae: The class of the VAE of videos.
        folder: The pipeline's folder or hub name.
        dtype: Type of the weights.
        device: Where they live.
    """

    def __init__(
        self,
        vae: str,
        folder: str | Path,
        *,
        dtype: str | torch.dtype = "bfloat16",
        device: str | torch.device = "cpu",
    ) -> None:
        self._video = load_decoder(vae, folder, dtype=dtype, device=device)
        self._folder, self._dtype, self._device = folder, dtype, device

    def __deepcopy__(self, memo: dict[int, Any]) -> LTX2Decoder:
        return self

    def __call__(self, x: Latents) -> Tensor:
        """Returns videos in [0, 1].

        Args:
            x: Latents of shape :math:`(B, 128, F', H / 32, W / 32)`.
        """
        return self._video(x)

    @torch.no_grad()
    def sound(self, tokens: Latents) -> Tensor:
        """Returns waveforms of shape :math:`(B, 2, L)`.

        Args:
            tokens: Tokens of sounds, with shape :math:`(B, 128, N)`.
        """
        vae, vocoder = self._sound_parts
        rows = tokens.transpose(1, 2)
        mean, std = (m.to(rows.device, rows.dtype) for m in (vae.latents_mean, vae.latents_std))
        bins = vae.config.mel_bins // vae.mel_compression_ratio
        spectra = (rows * std + mean).unflatten(2, (-1, bins)).transpose(1, 2)
        return vocoder(vae.decode(spectra.to(vae.dtype), return_dict=False)[0])

    @functools.cached_property
    def _sound_parts(self) -> tuple[Any, Any]:
        index = configuration("LTX2Pipeline", self._folder)
        names = {"audio_vae": "AutoencoderKLLTX2Audio", "vocoder": index["vocoder"][1]}
        return tuple(self._load(part, name) for part, name in names.items())  # type: ignore[return-value]

    def _load(self, part: str, name: str) -> Any:
        require("diffusers", "diffusers")
        check_weights(self._folder, (part,))
        with reporting(self._folder, part):
            module: Any = importlib.import_module("diffusers.pipelines.ltx2.vocoder")
            cls = getattr(module, name, None) or getattr(
                importlib.import_module("diffusers"), name
            )
            loaded = cls.from_pretrained(
                str(self._folder),
                subfolder=part,
                **dtype_argument(self._dtype),
                use_safetensors=True,
            )
        return loaded.to(self._device).eval()
