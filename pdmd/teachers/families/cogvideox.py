r"""CogVideoX: text-to-video transformers of 2 B and 5 B parameters.

A discrete process of 1000 levels whose last has no signal, with the network's v-prediction at
level :math:`i = 1000 t - 1` (:mod:`pdmd.teachers.families.discrete_timesteps`). The levels are
Stable Diffusion's, with the signal-to-noise ratio divided by ``snr_shift_scale``: 3 for the 2 B
weights and 1 for the 5 B. Latents of :math:`2 \times 2` are one token, in the 1.5 of
:math:`2 \times 2 \times 2`. Positions are a table in the 2 B network and rotary in the others. T5
encodes the text, always 226 tokens without a mask. Guidance is the classical extrapolation; the
pipeline's ``use_dynamic_cfg`` is not supported.

References:
    Yang et al., CogVideoX: Text-to-Video Diffusion Models with An Expert Transformer,
    arXiv:2408.06072.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from pdmd.teachers.families.discrete_time_teacher import DiscreteTimeTeacher
from pdmd.teachers.families.discrete_timesteps import SCALED_LINEAR
from pdmd.teachers.families.layouts import PipelineLayout
from pdmd.teachers.families.text import TextTeacher
from pdmd.teachers.families.tokens import check_frames, check_head, check_size
from pdmd.typing import Condition, Latents

__all__ = ["CogVideoXTeacher"]


class CogVideoXTeacher(DiscreteTimeTeacher, TextTeacher):
    r"""CogVideoX over latents of shape :math:`(16, (F - 1) / 4 + 1, H / 8, W / 8)`.

    Times from the first level, 0.001, to 1 can be evaluated. The condition is the text alone.
    Random weights are of CogVideoX 5B by default. For the 1.5 the number of latents in time must
    be even, 85 frames where the pipeline is called with 81: it pads the latents, and drops the
    first before it decodes.

    Args:
        backbone: A ``CogVideoXTransformer3DModel`` of diffusers.
        height: Height of a video, a multiple of twice the compression (16).
        width: Width of a video, as the height.
        frames: Its frames, a multiple of the compression in time and one.
        compression: Pixels to one latent in time, height and width.
        arguments: As :class:`~pdmd.teachers.families.text.TextTeacher` and
            :class:`~pdmd.teachers.families.discrete_time_teacher.DiscreteTimeTeacher` take.

    Raises:
        ValueError: If the size does not fit, or the network takes a first image.
    """

    layout = PipelineLayout(
        pipeline="CogVideoXPipeline",
        network="CogVideoXTransformer3DModel",
        vae="AutoencoderKLCogVideoX",
        scheduler="",
        task="text-to-video",
        time_scale=1000.0,
        time_offset=-1.0,
        takes_sigmas=False,
        proposes=False,
        output="frames",
    )
    released = {
        "num_layers": 42,
        "num_attention_heads": 48,
        "attention_head_dim": 64,
        "text_embed_dim": 4096,
        "latent_channels": 16,
        "patch_size_t": None,
        "use_rotary_positional_embeddings": True,
        "snr_shift_scale": 1.0,
    }
    options = {"height": 480, "width": 720, "frames": 49, "compression": (4, 8, 8)}
    betas = {
        **SCALED_LINEAR,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "snr_shift_scale": 1.0,
    }
    text_length = random_length = 226

    @classmethod
    def latents(
        cls,
        config: Any,
        *,
        height: int,
        width: int,
        frames: int,
        compression: tuple[int, int, int],
        **_: Any,
    ) -> tuple[int, ...]:
        if config.in_channels != config.out_channels or config.ofs_embed_dim:
            raise ValueError(
                f"this transformer has {config.in_channels} input and {config.out_channels} "
                "output channels, so it needs a first image; only text-to-video networks are "
                "supported"
            )
        time, rows, columns = compression
        check_frames(time, frames)
        check_size(config.patch_size * rows, height=height)
        check_size(config.patch_size * columns, width=width)
        shape = (frames - 1) // time + 1, height // rows, width // columns
        if shape[0] % (config.patch_size_t or 1):
            raise ValueError(
                f"{frames} frames are {shape[0]} latents in time, and this network takes "
                f"{config.patch_size_t} as one token: give {frames + time} frames"
            )
        return config.in_channels, *shape

    @classmethod
    def network_config(cls, *, snr_shift_scale: float, **sizes: Any) -> dict[str, Any]:
        channels = sizes.pop("latent_channels")
        check_head(sizes["attention_head_dim"], 16)
        newer = sizes["patch_size_t"] is not None  # as diffusers converted the 1.5
        area = {"sample_height": 300, "sample_width": 300, "sample_frames": 85}
        return {
            **sizes,
            "in_channels": channels,
            "out_channels": channels,
            "patch_bias": not newer,
            **(area if newer else {}),
        }

    @classmethod
    def encode_texts(cls, pipeline: Any, texts: list[str], length: int | None) -> dict[str, Any]:
        embeddings, _ = pipeline.encode_prompt(
            texts, do_classifier_free_guidance=False, max_sequence_length=length
        )
        return {"prompt": embeddings}

    @property
    def tokens(self) -> int:
        config = self.backbone.config
        return super().tokens // (config.patch_size**2 * (config.patch_size_t or 1))

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates the network on frames before channels, at its own time."""
        rows = self.conditioned(condition, x_t)
        value = self.evaluate(
            x_t.transpose(1, 2),
            t,
            encoder_hidden_states=rows["prompt"].to(self.backbone.dtype),
            image_rotary_emb=self._rotary(x_t.shape[2:], x_t.device),
        )
        return value.transpose(1, 2)

    def _rotary(self, shape: tuple[int, ...], device: torch.device) -> Any:
        config = self.backbone.config
        if not config.use_rotary_positional_embeddings:
            return None
        embeddings: Any = importlib.import_module("diffusers.models.embeddings")
        pipeline: Any = importlib.import_module("diffusers.pipelines.cogvideo.pipeline_cogvideox")
        patch, time = config.patch_size, config.patch_size_t
        size = shape[1] // patch, shape[2] // patch
        base = config.sample_height // patch, config.sample_width // patch
        if time is None:
            crop = pipeline.get_resize_crop_region_for_grid(size, base[1], base[0])
            how: dict[str, Any] = {"crops_coords": crop, "temporal_size": shape[0]}
        else:
            how = {"crops_coords": None, "grid_type": "slice", "max_size": base}
            how["temporal_size"] = shape[0] // time
        return embeddings.get_3d_rotary_pos_embed(
            embed_dim=config.attention_head_dim, grid_size=size, device=device, **how
        )

    def reset_tables(self, device: str | torch.device = "cpu") -> None:
        """Recomputes the table of positions of a network that has one."""
        embed, config = self.backbone.patch_embed, self.backbone.config
        if hasattr(embed, "pos_embedding"):
            embed.pos_embedding = embed._get_positional_embeddings(
                config.sample_height, config.sample_width, config.sample_frames, device=device
            )
