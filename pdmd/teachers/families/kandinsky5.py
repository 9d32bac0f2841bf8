r"""Kandinsky 5: text-to-video transformers of 2 B and 19 B parameters, text-to-image of 6 B.

The network takes :math:`1000 \sigma` as its time and predicts the velocity
:math:`\varepsilon - x_0`, of frames whose channels come last. Qwen 2.5 VL's tokens and CLIP's
pooled vector are the condition. The network takes no mask: a batch is evaluated in runs of texts
of equal length, each cut to it, so that no sample depends on the padding of its batch. (The
pipeline called with several prompts lets the shorter ones attend to padding; with one it does
not.) Networks of videos take zeros beside the latents, where those of image to video take a first
frame. Guidance is the classical extrapolation.

References:
    Kandinsky Lab, Kandinsky 5.0, arXiv:2511.14993.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdmd.teachers.conditioning.cut_texts import note_cut_texts
from pdmd.teachers.conditioning.text_lengths import lengths_of
from pdmd.teachers.families.layouts import PipelineLayout
from pdmd.teachers.families.text import TextTeacher
from pdmd.teachers.families.tokens import check_frames, check_size
from pdmd.teachers.families.vaes import load_vae
from pdmd.typing import Condition, Latents, join_conditions

__all__ = ["Kandinsky5ImageTeacher", "Kandinsky5NetworkTeacher", "Kandinsky5Teacher"]

SIZES = {
    "model_dim": 1792,
    "ff_dim": 7168,
    "time_dim": 512,
    "num_text_blocks": 2,
    "num_visual_blocks": 32,
    "axes_dims": (16, 24, 24),
    "in_text_dim": 3584,
    "in_text_dim2": 768,
    "latent_channels": 16,
    "visual_cond": True,
}
"""Sizes of Kandinsky 5.0 T2V Lite."""


class Kandinsky5NetworkTeacher(TextTeacher):
    """A network of Kandinsky 5. A subclass states its layout, sizes, options and latents.

    Every time in [0, 1] can be evaluated. Conditions have ``prompt``, ``mask`` and ``pooled``.

    Args:
        backbone: A ``Kandinsky5Transformer3DModel`` of diffusers.
        arguments: As :class:`~pdmd.teachers.families.text.TextTeacher` takes.

    Raises:
        ValueError: If the network's attention is sparse (``nabla``, of videos of 10 seconds and of
            high resolution).
    """

    condition_keys = ("prompt", "mask", "pooled")
    masked = True

    @classmethod
    def network_config(cls, *, latent_channels: int, **sizes: Any) -> dict[str, Any]:
        head = sum(sizes["axes_dims"])
        if sizes["model_dim"] % head or any(dim % 2 for dim in sizes["axes_dims"]):
            raise ValueError(
                f"axes_dims must be even and their sum divide model_dim, got {sizes['axes_dims']} "
                f"and {sizes['model_dim']}"
            )
        channels = {"in_visual_dim": latent_channels, "out_visual_dim": latent_channels}
        return {**sizes, **channels, "axes_dims": tuple(sizes["axes_dims"])}

    @staticmethod
    def check_attention(config: Any) -> None:
        """Checks that the network's attention is dense.

        Raises:
            ValueError: If it is not.
        """
        if config.attention_type != "regular":
            raise ValueError(
                f"this transformer has attention_type {config.attention_type!r}; only 'regular' "
                "is supported"
            )

    @classmethod
    def encode_texts(cls, pipeline: Any, texts: list[str], length: int | None) -> dict[str, Any]:
        from tensordict import TensorDict

        whole = [pipeline.prompt_template.format(text) for text in texts]
        tokens = pipeline.tokenizer(text=whole, images=None, videos=None)["input_ids"]
        most = pipeline.prompt_template_encode_start_idx + (length or 0)
        long = [i for i, ids in enumerate(tokens) if len(ids) > most]
        note_cut_texts([texts[i] for i in long])
        # Apart: beside a text that is too long, a call cuts the others by the text of its padding.
        short = [i for i in range(len(texts)) if i not in long]
        groups = [*([short] if short else []), *([i] for i in long)]
        found = [cls._encoded(pipeline, [texts[i] for i in group], length) for group in groups]
        parts = [TensorDict(f, batch_size=[len(f["mask"])]) for f in found]
        order = torch.tensor([i for group in groups for i in group]).argsort()
        joined: Any = join_conditions(*parts)[order].items()
        return dict(joined)

    @staticmethod
    def _encoded(pipeline: Any, texts: list[str], length: int | None) -> dict[str, Any]:
        prompt, pooled, ends = pipeline.encode_prompt(texts, max_sequence_length=length)
        places = torch.arange(prompt.shape[1], device=prompt.device)
        mask = places < ends.diff()[:, None]
        return {"prompt": prompt * mask[..., None], "mask": mask, "pooled": pooled}

    def random_shapes(self, sizes: Mapping[str, Any]) -> Mapping[str, Sequence[int]]:
        return {"pooled": (sizes["in_text_dim2"],)}

    def rope_scale(self, x_t: Latents) -> tuple[float, float, float]:
        """Returns the factors that positions in time, height and width are divided by; here 1."""
        return 1.0, 1.0, 1.0

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates the network on runs of texts of equal length, at 1000 times the time."""
        rows = self.conditioned(condition, x_t)
        lengths = lengths_of(rows)
        if lengths is None:  # of a condition that encode() did not return: waits for the device
            lengths = rows["mask"].sum(1).tolist()
        dtype = self.backbone.dtype
        video = x_t if x_t.ndim == 5 else x_t[:, :, None]
        x = video.movedim(1, -1).to(dtype)
        if self.backbone.config.visual_cond:  # no first frame: its latents and its mask are zero
            x = torch.nn.functional.pad(x, (0, x.shape[-1] + 1))
        places = [torch.arange(n, device=x.device) for n in self._patches(video)]
        embed = self.backbone.time_embeddings
        if embed.freqs.device != x.device:  # no buffer, so it stays behind when the network moves
            embed.freqs = embed.freqs.to(x.device)
        values, start = [], 0
        for length, run in groupby(lengths):
            part = slice(start, start := start + len(list(run)))
            values.append(
                self.backbone(
                    hidden_states=x[part],
                    encoder_hidden_states=rows["prompt"][part, :length].to(dtype),
                    pooled_projections=rows["pooled"][part].to(dtype),
                    timestep=(1000 * t[part]).float(),
                    visual_rope_pos=places,
                    text_rope_pos=torch.arange(length, device=x.device),
                    scale_factor=self.rope_scale(x_t),
                    return_dict=False,
                )
            )
        return torch.cat(values).movedim(-1, 1).reshape(x_t.shape).to(x_t.dtype)

    def _patches(self, video: Tensor) -> tuple[int, ...]:
        patch = self.backbone.config.patch_size
        return tuple(n // p for n, p in zip(video.shape[2:], patch, strict=True))

    def reset_tables(self, device: str | torch.device = "cpu") -> None:
        """Recomputes the tables of positions and the frequencies of the time."""
        network, config = self.backbone, self.backbone.config
        text, visual, time = (
            network.text_rope_embeddings,
            network.visual_rope_embeddings,
            network.time_embeddings,
        )
        with torch.device(device):
            network.text_rope_embeddings = type(text)(sum(config.axes_dims))
            network.visual_rope_embeddings = type(visual)(config.axes_dims)
            time.freqs = type(time)(config.model_dim, 1).freqs


class Kandinsky5Teacher(Kandinsky5NetworkTeacher):
    r"""Kandinsky 5 text to video, of shape :math:`(16, (F - 1) / 4 + 1, H / 8, W / 8)`.

    Args:
        backbone: As :class:`Kandinsky5NetworkTeacher`, with other arguments and errors.
        height: Height of a video, a multiple of twice the compression (16).
        width: Width of a video, as the height.
        frames: Its frames, a multiple of the compression in time and one.
        compression: Pixels to one latent in time, height and width.
    """

    layout = PipelineLayout(
        pipeline="Kandinsky5T2VPipeline",
        network="Kandinsky5Transformer3DModel",
        vae="AutoencoderKLHunyuanVideo",
        task="text-to-video",
        time_scale=1000.0,
        takes_sigmas=False,
        proposes=False,
        output="frames",
    )
    released = SIZES
    options = {"height": 512, "width": 768, "frames": 121, "compression": (4, 8, 8)}
    text_length = random_length = 512

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
        cls.check_attention(config)
        time, rows, columns = compression
        check_frames(time, frames)
        check_size(2 * rows, height=height)
        check_size(2 * columns, width=width)
        shape = (frames - 1) // time + 1, height // rows, width // columns
        return config.in_visual_dim, *shape

    def default_shift(self) -> float:
        return 10.0

    def rope_scale(self, x_t: Latents) -> tuple[float, float, float]:
        space_per_latent = self.options["compression"][1:]
        sides = [n * k for n, k in zip(x_t.shape[-2:], space_per_latent, strict=True)]
        space = 2.0 if all(480 <= side <= 854 for side in sides) else 3.16
        return 1.0, space, space


class Kandinsky5ImageTeacher(Kandinsky5NetworkTeacher):
    r"""Kandinsky 5 text to image, of shape :math:`(16, H / 8, W / 8)`.

    The pipeline rounds a size to one of the seven it was trained at; here it is taken as given.

    Args:
        backbone: As :class:`Kandinsky5NetworkTeacher`, with other arguments and errors.
        height: Height of an image, a multiple of twice the compression (16).
        width: Width of an image, as the height.
        compression: Pixels to one latent in height and width.
    """

    layout = PipelineLayout(
        pipeline="Kandinsky5T2IPipeline",
        network="Kandinsky5Transformer3DModel",
        vae="AutoencoderKL",
        task="text-to-image",
        time_scale=1000.0,
        takes_sigmas=False,
        proposes=False,
        output="image",
    )
    released = {
        **SIZES,
        "model_dim": 2560,
        "ff_dim": 10240,
        "num_visual_blocks": 50,
        "axes_dims": (32, 48, 48),
        "visual_cond": False,
    }
    options = {"height": 1024, "width": 1024, "compression": 8}
    text_length = random_length = 512

    @classmethod
    def latents(
        cls, config: Any, *, height: int, width: int, compression: int, **_: Any
    ) -> tuple[int, ...]:
        cls.check_attention(config)
        check_size(2 * compression, height=height, width=width)
        return config.in_visual_dim, height // compression, width // compression

    @classmethod
    def read_decoder(cls, folder: str | Path, **place: Any) -> Callable[[Latents], Tensor] | None:
        load = load_vae(cls.layout.vae, folder, **place)

        @torch.no_grad()
        def decode(x: Latents) -> Tensor:
            vae = load()  # Flux.1's, whose shift_factor this family does not use
            z = (x / vae.config.scaling_factor).to(vae.dtype)
            return (vae.decode(z, return_dict=False)[0].float() / 2 + 0.5).clamp(0, 1)

        return decode

    def default_shift(self) -> float:
        return 3.0
