r"""LTX-2: transformers of 19 B (2.0) and 22 B parameters (2.3) for video and its sound.

The network takes :math:`1000 \sigma` as its time and predicts the velocities
:math:`\varepsilon - x_0` of two streams of tokens, which attend to each other: one token per
latent of the video, and 25 a second of the sound, each of all its mel bins. Tokens of both
have 128 numbers, so that a sample is **one** tensor, of shape :math:`(128, N_v + N_a)`: the
tokens of the video, then those of the sound. Both are noised to the same time and both are
distilled; a mean over a sample weighs them by their numbers of tokens, so the sound is about 2% of
a loss. Schedules, objectives and solvers see one sample.

Gemma 3 encodes the text, and two small networks of the pipeline (connectors) turn its hidden
layers into 1024 tokens for either stream, ``prompt`` and ``audio_prompt``, without a mask.
Guidance is the classical extrapolation; that of the sound may be stronger. The pipeline's
spatio-temporal and modality guidance and its rescaling are not supported. The shift of time grows
with the number of the video's tokens.

References:
    HaCohen et al., LTX-2: Efficient Joint Audio-Visual Foundation Model, arXiv:2601.03233.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from pdmd.teachers.conditioning.prompts import PromptEmbeddings
from pdmd.teachers.families.layouts import PipelineLayout
from pdmd.teachers.families.ltx import SHIFT
from pdmd.teachers.families.ltx2_decoders import LTX2Decoder
from pdmd.teachers.families.text import TextTeacher
from pdmd.teachers.families.tokens import check_frames, check_head, check_size
from pdmd.typing import Condition, Latents

__all__ = ["LTX2Teacher"]


class LTX2Teacher(TextTeacher):
    r"""LTX-2 over samples of shape :math:`(128, N_v + N_a)`, video and sound.

    There are :math:`N_v = ((F - 1) / 8 + 1) (H / 32) (W / 32)` tokens of the video and
    :math:`N_a = 25 F / \text{frame rate}`, rounded, of the sound. Every time in [0, 1] can be
    evaluated. First images are not supported. ``decode`` returns the video and
    :meth:`decode_audio` the sound. Random weights are the 2.0's by default.

    Args:
        backbone: A ``LTX2VideoTransformer3DModel`` of diffusers.
        height: Height of a video, a multiple of the compression.
        width: Width of a video, as the height.
        frames: Its frames, a multiple of the compression in time and one.
        frame_rate: Frames a second.
        audio_guidance: The sound's guidance relative to the video's: at scale :math:`g` the sound
            is guided by :math:`1 + a (g - 1)`. The pipeline's defaults, 3 and 7, are
            :math:`g = 3` and :math:`a = 3`.
        compression: Pixels to one latent in time, height and width.
        arguments: As :class:`~pdmd.teachers.families.text.TextTeacher` takes.

    Raises:
        ValueError: If the size does not fit, the frame rate is not positive, a token of the
            network is several latents, the two streams have tokens of other widths, or the
            network is of diffusers 0.37.
    """

    layout = PipelineLayout(
        pipeline="LTX2Pipeline",
        network="LTX2VideoTransformer3DModel",
        vae="AutoencoderKLLTX2Video",
        task="text-to-video",
        time_scale=1000.0,
        unguided={
            "guidance_scale": 1.0,
            "audio_guidance_scale": 1.0,
            "stg_scale": 0.0,
            "audio_stg_scale": 0.0,
            "modality_scale": 1.0,
            "audio_modality_scale": 1.0,
            "guidance_rescale": 0.0,
            "audio_guidance_rescale": 0.0,
        },
        output="frames",
    )
    released = {
        "num_layers": 48,
        "num_attention_heads": 32,
        "attention_head_dim": 128,
        "audio_num_attention_heads": 32,
        "audio_attention_head_dim": 64,
        "caption_channels": 3840,
        "latent_channels": 128,
        "gated": False,
    }
    options = {
        "height": 512,
        "width": 768,
        "frames": 121,
        "frame_rate": 24.0,
        "audio_guidance": 1.0,
        "compression": (8, 32, 32),
    }
    condition_keys = ("prompt", "audio_prompt")
    text_length = random_length = 1024

    def __init__(
        self,
        backbone: Any,
        *,
        decode: Callable[[Latents], Tensor] | None = None,
        **arguments: Any,
    ) -> None:
        if "sigma" not in inspect.signature(backbone.forward).parameters:
            raise ValueError(
                f"the {type(backbone).__name__} of diffusers {version('diffusers')} is an earlier "
                "one than LTX-2 is supported with; run pip install --upgrade diffusers"
            )
        super().__init__(backbone, **arguments)
        self.decoder = decode
        self._places: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._bind()

    @classmethod
    def latents(
        cls,
        config: Any,
        *,
        height: int,
        width: int,
        frames: int,
        frame_rate: float,
        audio_guidance: float,
        compression: tuple[int, int, int],
        **_: Any,
    ) -> tuple[int, ...]:
        patches = (config.patch_size_t, config.patch_size)
        patches += (config.audio_patch_size_t, config.audio_patch_size)
        if patches != (1, 1, 1, 1) or config.audio_in_channels != config.in_channels:
            raise ValueError(
                f"this transformer takes patches of {patches} latents and tokens of "
                f"{config.in_channels} (video) and {config.audio_in_channels} (sound) numbers; "
                "only patches of one and tokens of one width are supported"
            )
        for name, value in (("frame_rate", frame_rate), ("audio_guidance", audio_guidance)):
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be positive and finite, got {value}")
        grid = _grid(height, width, frames, compression)
        return config.in_channels, math.prod(grid) + _audio_length(config, frames, frame_rate)

    @classmethod
    def network_config(cls, *, latent_channels: int, gated: bool, **sizes: Any) -> dict[str, Any]:
        for prefix in ("", "audio_"):
            check_head(sizes[f"{prefix}attention_head_dim"], 2)
            heads = sizes[f"{prefix}num_attention_heads"]
            sizes[f"{prefix}cross_attention_dim"] = heads * sizes[f"{prefix}attention_head_dim"]
        names = ("in_channels", "out_channels", "audio_in_channels", "audio_out_channels")
        later = ("gated_attn", "cross_attn_mod", "audio_gated_attn", "audio_cross_attn_mod")
        return {
            **sizes,
            **dict.fromkeys(names, latent_channels),
            **dict.fromkeys((*later, "perturbed_attn"), gated),
            "use_prompt_embeddings": not gated,
            "rope_type": "split",
        }

    @classmethod
    def text_width(cls, config: Mapping[str, Any]) -> int | None:
        name = "caption_channels" if config["use_prompt_embeddings"] else "cross_attention_dim"
        return config[name]

    @classmethod
    def read_decoder(cls, folder: str | Path, **place: Any) -> Callable[[Latents], Tensor] | None:
        return LTX2Decoder(cls.layout.vae, folder, **place)

    @classmethod
    def encode_texts(cls, pipeline: Any, texts: list[str], length: int | None) -> dict[str, Any]:
        fields: dict[str, list[Tensor]] = {"prompt": [], "audio_prompt": []}
        for text in texts:  # one by one: a token has all layers until it is connected
            hidden, mask, _, _ = pipeline.encode_prompt(
                text, do_classifier_free_guidance=False, max_sequence_length=length
            )
            side = pipeline.tokenizer.padding_side
            video, audio, kept = pipeline.connectors(hidden, mask, padding_side=side)
            if not bool(kept.all()):
                raise ValueError(
                    "these connectors pad texts without registers; only those with "
                    "video_connector_num_learnable_registers are supported"
                )
            fields["prompt"].append(video)
            fields["audio_prompt"].append(audio)
        return {key: torch.cat(rows) for key, rows in fields.items()}

    def random_text(
        self, number: int, length: int, seed: int, sizes: Mapping[str, Any]
    ) -> PromptEmbeddings:
        config = self.backbone.config
        plain = config.use_prompt_embeddings
        width = config.caption_channels if plain else config.audio_cross_attention_dim
        return PromptEmbeddings.random(
            number,
            length=length,
            dim=self.text_width(config) or 0,
            masked=False,
            more={"audio_prompt": (length, width)},
            seed=seed,
        )

    def default_shift(self) -> float:
        return SHIFT(self.tokens)

    @property
    def grid(self) -> tuple[int, int, int]:
        """The latents of a video in time, height and width."""
        sizes = {key: self.options[key] for key in ("height", "width", "frames", "compression")}
        return _grid(**sizes)

    @property
    def tokens(self) -> int:
        """The number of tokens of the video, on which the shift depends."""
        return math.prod(self.grid)

    def with_size(self, **sizes: int) -> Self:
        """Returns a teacher of another size over the same network, prompts and decoder."""
        resized = super().with_size(**sizes)
        resized._places = {}
        resized._bind()
        return resized

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates the network on both streams, at 1000 times the time.

        Raises:
            ValueError: If samples are of another size.
        """
        if x_t.shape[2] != self.latent_shape[1]:
            raise ValueError(
                f"samples have {x_t.shape[2]} tokens, and this teacher's {self.latent_shape[1]} "
                f"({self.tokens} of the video); evaluate the teacher of their size (with_size)"
            )
        rows = self.conditioned(condition, x_t)
        dtype, time = self.backbone.dtype, (1000 * t).float()
        frames, height, width = self.grid
        tokens = x_t.transpose(1, 2).to(dtype)
        places = self._positions(x_t.device)
        values = self.backbone(
            hidden_states=tokens[:, : self.tokens],
            audio_hidden_states=tokens[:, self.tokens :],
            encoder_hidden_states=rows["prompt"].to(dtype),
            audio_encoder_hidden_states=rows["audio_prompt"].to(dtype),
            timestep=time,
            sigma=time,
            num_frames=frames,
            height=height,
            width=width,
            audio_num_frames=x_t.shape[2] - self.tokens,
            video_coords=places[0].expand(len(x_t), -1, -1, -1),
            audio_coords=places[1].expand(len(x_t), -1, -1, -1),
            return_dict=False,
        )
        return torch.cat(values, 1).transpose(1, 2).to(x_t.dtype)

    def guide(
        self, conditional: Latents, unconditional: Latents, scale: float | Tensor
    ) -> Latents:
        """Extrapolates, the sound by its own scale."""
        ratio = self.options["audio_guidance"]
        video = super().guide(conditional, unconditional, scale)
        if ratio == 1:
            return video
        sound = super().guide(conditional, unconditional, 1 + ratio * (scale - 1))
        return torch.cat([video[..., : self.tokens], sound[..., self.tokens :]], -1)

    def video_of(self, x: Latents) -> Latents:
        """Returns a sample's video, of shape :math:`(B, 128, F', H / 32, W / 32)`."""
        return x[..., : self.tokens].unflatten(-1, self.grid)

    def audio_of(self, x: Latents) -> Latents:
        """Returns a sample's sound, of shape :math:`(B, 128, N_a)`."""
        return x[..., self.tokens :]

    def decode_audio(self, x: Latents) -> Tensor:
        """Decodes the sound of samples.

        Args:
            x: Samples, with shape :math:`(B, 128, N_v + N_a)`.

        Returns:
            Waveforms of shape :math:`(B, 2, L)`, at the vocoder's rate.

        Raises:
            ValueError: If the teacher has no decoder of sound.
        """
        if not isinstance(self.decoder, LTX2Decoder):
            raise ValueError("this LTX2Teacher has no vocoder; load it with from_pretrained")
        return self.decoder.sound(self.audio_of(x))

    def _bind(self) -> None:
        if self.decoder is not None:
            self.decode = partial(_decode_video, self.decoder, self.grid)

    def _positions(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Returns the positions of both streams, computed on the CPU and moved once."""
        if device not in self._places:
            network, rate = self.backbone, self.options["frame_rate"]
            cpu = torch.device("cpu")
            video = network.rope.prepare_video_coords(1, *self.grid, cpu, fps=rate)
            length = self.latent_shape[1] - self.tokens
            audio = network.audio_rope.prepare_audio_coords(1, length, cpu)
            self._places[device] = (video.to(device), audio.to(device))
        return self._places[device]


def _decode_video(
    decoder: Callable[[Latents], Tensor], grid: tuple[int, int, int], x: Latents
) -> Tensor:
    return decoder(x[..., : math.prod(grid)].unflatten(-1, grid))


def _grid(
    height: int, width: int, frames: int, compression: tuple[int, int, int]
) -> tuple[int, int, int]:
    time, rows, columns = compression
    check_frames(time, frames)
    check_size(rows, height=height)
    check_size(columns, width=width)
    return (frames - 1) // time + 1, height // rows, width // columns


def _audio_length(config: Any, frames: int, frame_rate: float) -> int:
    """Returns the number of tokens of the sound of a video."""
    rate = config.audio_sampling_rate / config.audio_hop_length / config.audio_scale_factor
    return max(1, round(frames / frame_rate * rate))
