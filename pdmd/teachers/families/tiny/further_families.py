"""Tiny pipelines of SANA, Chroma, FLUX.2, Kandinsky 5 and further families of videos."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from pdmd.teachers.families.discrete_timesteps import SCALED_LINEAR
from pdmd.teachers.families.text_pipelines import NoSafetyChecker
from pdmd.teachers.families.tiny.encoders import (
    byt5_encoder,
    clip_encoder,
    gemma_encoder,
    hunyuan_encoder,
    mistral_encoder,
    qwen3_encoder,
    qwen_encoder,
    reason_encoder,
    t5_encoder,
)
from pdmd.teachers.families.tiny.sounds import ltx2_parts
from pdmd.teachers.families.tiny.tiny_family import TinyFamily, named_parts
from pdmd.teachers.families.tiny.vaes import (
    cogvideox_vae,
    deep_vae,
    flux2_vae,
    hunyuan15_vae,
    hunyuan_vae,
    image_vae,
    ltx2_vae,
    wan_vae,
)

__all__ = ["FURTHER"]

_IMAGE = {"height": 64, "width": 48}
_VIDEO = {**_IMAGE, "frames": 9}
_STREAMS = {
    "num_layers": 1,
    "num_single_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "latent_channels": 4,
}
_KANDINSKY = {
    "model_dim": 32,
    "ff_dim": 32,
    "time_dim": 16,
    "num_text_blocks": 1,
    "num_visual_blocks": 2,
    "axes_dims": (4, 6, 6),
    "in_text_dim": 16,
    "in_text_dim2": 12,
    "latent_channels": 4,
}

FURTHER: Mapping[str, TinyFamily] = MappingProxyType(
    {
        "sana": TinyFamily(
            sizes={
                "num_layers": 2,
                "num_attention_heads": 2,
                "attention_head_dim": 8,
                "num_cross_attention_heads": 2,
                "cross_attention_head_dim": 8,
                "caption_channels": 16,
                "latent_channels": 4,
            },
            options={"height": 96, "width": 64},
            vae=deep_vae,
            encoders=lambda: named_parts(gemma_encoder(16)),
            scheduler={"shift": 3.0},
        ),
        "chroma": TinyFamily(
            sizes={
                **_STREAMS,
                "joint_attention_dim": 32,
                "approximator_num_channels": 64,
                "approximator_hidden_dim": 16,
                "approximator_layers": 2,
            },
            options=_IMAGE,
            vae=image_vae,
            encoders=lambda: named_parts(t5_encoder(32)),
        ),
        "flux2": TinyFamily(
            sizes={**_STREAMS, "joint_attention_dim": 24},
            options=_IMAGE,
            vae=flux2_vae,
            encoders=lambda: named_parts(mistral_encoder(8)),
            scheduler={"use_dynamic_shifting": True},
        ),
        "flux2_klein": TinyFamily(
            sizes={**_STREAMS, "joint_attention_dim": 24},
            options=_IMAGE,
            vae=flux2_vae,
            encoders=lambda: named_parts(qwen3_encoder(8)),
            scheduler={"use_dynamic_shifting": True},
        ),
        "cogvideox": TinyFamily(
            sizes={
                "num_layers": 2,
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "text_embed_dim": 32,
                "latent_channels": 4,
            },
            options=_VIDEO,
            vae=cogvideox_vae,
            encoders=lambda: named_parts(t5_encoder(32)),
            scheduler={
                **SCALED_LINEAR,
                "prediction_type": "v_prediction",
                "rescale_betas_zero_snr": True,
                "snr_shift_scale": 1.0,
                "timestep_spacing": "trailing",
                "clip_sample": False,
            },
            scheduler_class="CogVideoXDDIMScheduler",
        ),
        "cosmos_predict25": TinyFamily(
            sizes={
                "num_layers": 2,
                "num_attention_heads": 2,
                "attention_head_dim": 18,
                "adaln_lora_dim": 8,
                "text_embed_dim": 24,
                "crossattn_proj_in_channels": 32,
                "latent_channels": 4,
            },
            options=_VIDEO,
            vae=wan_vae,
            encoders=lambda: named_parts(reason_encoder(16)),
            scheduler={
                "use_karras_sigmas": True,
                "use_flow_sigmas": True,
                "prediction_type": "flow_prediction",
                "sigma_max": 200.0,
                "sigma_min": 0.01,
            },
            scheduler_class="UniPCMultistepScheduler",
            more={"safety_checker": NoSafetyChecker()},  # which is not saved
        ),
        "ltx2": TinyFamily(
            sizes={
                "num_layers": 2,
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "audio_num_attention_heads": 2,
                "audio_attention_head_dim": 8,
                "caption_channels": 16,
                "latent_channels": 4,
            },
            options={"height": 64, "width": 96, "frames": 9},
            vae=ltx2_vae,
            encoders=lambda: ltx2_parts(16, 4),
            scheduler={
                "use_dynamic_shifting": True,
                "base_shift": 0.95,
                "max_shift": 2.05,
                "base_image_seq_len": 1024,
                "max_image_seq_len": 4096,
                "shift_terminal": 0.1,
            },
        ),
        "hunyuan_video15": TinyFamily(
            sizes={
                "num_layers": 2,
                "num_refiner_layers": 1,
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "text_embed_dim": 16,
                "text_embed_2_dim": 12,
                "image_embed_dim": 8,
                "glyph_length": 5,
                "latent_channels": 4,
            },
            options=_VIDEO,
            vae=hunyuan15_vae,
            encoders=lambda: named_parts(hunyuan_encoder(16), byt5_encoder(12)),
            scheduler={"shift": 5.0},
            components={"guider": "ClassifierFreeGuidance"},
        ),
        "kandinsky5": TinyFamily(
            sizes=_KANDINSKY,
            options=_VIDEO,
            vae=hunyuan_vae,
            encoders=lambda: named_parts(qwen_encoder(16), clip_encoder(12)),
            scheduler={"shift": 10.0},
        ),
        "kandinsky5_image": TinyFamily(
            sizes={**_KANDINSKY, "visual_cond": False},
            options=_IMAGE,
            vae=image_vae,
            encoders=lambda: named_parts(qwen_encoder(16), clip_encoder(12)),
            scheduler={"shift": 3.0},
        ),
    }
)
"""The tiny pipelines by the registered name of the teacher."""
