r"""Stable Diffusion 1.x and 2.x: text-to-image UNets over latents of 4 channels.

The network takes the level 0 to 999 as its time
(:mod:`pdmd.teachers.families.discrete_timesteps`) and predicts :math:`\varepsilon`, or the
v-prediction :math:`\alpha_t \varepsilon - \sigma_t x_0` where the pipeline's scheduler states it.
Text is 77 tokens of CLIP, without a mask; no prompt is the empty text. Latents are the VAE's
times its ``scaling_factor``.

References:
    Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, arXiv:2112.10752.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pdmd.teachers.families.discrete_timesteps import check_channels
from pdmd.teachers.families.layouts import PipelineLayout
from pdmd.teachers.families.unet import UNetTeacher

__all__ = ["StableDiffusionTeacher"]

VERSIONS = {
    1: {"cross_attention_dim": 768, "prediction_type": "epsilon"},
    2: {"cross_attention_dim": 1024, "prediction_type": "v_prediction"},
}
"""Sizes that depend on the version: 1.5 at 512 pixels, 2.1 at 768."""


class StableDiffusionTeacher(UNetTeacher):
    r"""Stable Diffusion over latents of shape :math:`(4, H / 8, W / 8)`.

    Arguments and errors are those of :class:`~pdmd.teachers.families.unet.UNetTeacher`. Levels
    reach from :math:`t = 0.001` to 1; pure noise is not among them unless the scheduler rescales
    its betas to zero terminal SNR.

    Among the sizes, ``version`` is 1 (1.5: epsilon at 512 pixels) or 2 (2.1: v-prediction at 768);
    sizes of ``None`` are the version's. ``channels`` are the first block's, and the other blocks
    have 2, 4 and 4 times as many.
    """

    layout = PipelineLayout(
        pipeline="StableDiffusionPipeline",
        network="UNet2DConditionModel",
        vae="AutoencoderKL",
        slots=("unet",),
        scheduler="",
    )
    released = {
        "version": 1,
        "channels": 320,
        "layers_per_block": 2,
        "heads": None,
        "cross_attention_dim": None,
        "norm_num_groups": 32,
        "prediction_type": None,
        "rescale_betas_zero_snr": False,
    }

    @classmethod
    def network_config(
        cls, *, version: int, channels: int, heads: int | None, **sizes: Any
    ) -> dict[str, Any]:
        check_channels(channels, sizes["norm_num_groups"])
        widths = [channels * k for k in (1, 2, 4, 4)]
        own = 8 if version == 1 else [max(1, width // 64) for width in widths]
        dim = sizes["cross_attention_dim"] or VERSIONS[version]["cross_attention_dim"]
        return {
            "sample_size": {1: 64, 2: 96}[version],
            "block_out_channels": widths,
            "layers_per_block": sizes["layers_per_block"],
            "attention_head_dim": own if heads is None else heads,  # number of heads
            "cross_attention_dim": VERSIONS[version]["cross_attention_dim"]
            if dim is None
            else dim,
            "norm_num_groups": sizes["norm_num_groups"],
            "use_linear_projection": version == 2,
        }

    @classmethod
    def config_options(cls, sizes: Mapping[str, Any]) -> dict[str, Any]:
        version = sizes["version"]
        if version not in VERSIONS:
            raise ValueError(f"version must be 1 or 2, got {version!r}")
        kind = sizes["prediction_type"] or VERSIONS[version]["prediction_type"]
        return super().config_options({**sizes, "prediction_type": kind})

    @classmethod
    def encode_texts(cls, pipeline: Any, texts: list[str], length: int | None) -> dict[str, Any]:
        embeddings, _ = pipeline.encode_prompt(texts, pipeline.text_encoder.device, 1, False)
        return {"prompt": embeddings}
