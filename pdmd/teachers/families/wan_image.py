r"""Wan image to video: transformers that go on from a first image (2.1, 2.2 A14B and 2.2 5B).

Time, velocity, text, networks and guidance are those of :mod:`~pdmd.teachers.families.wan`. The
first image enters in one of two ways.

* 2.1 and the 2.2 A14B read :math:`C + 4` channels beside the latents: a mask of the known frames,
  four to a latent, and the latents of a video of the image and grey frames after it. The 2.1 also
  reads the image as CLIP sees it.
* In the 2.2 5B, the image's latents :math:`c` take the place of the first frame, whose time is 0.
  What is known needs no network: there the velocity is the exact
  :math:`\mathbb E[\varepsilon - x_0 \mid x_t] = (x_t - c) / t`, so that every sampler ends at
  :math:`c`, and teacher and fake score agree.

Guidance leads away from the same image without its text.

References:
    Wan Team, Wan: Open and Advanced Large-Scale Video Generative Models, arXiv:2503.20314.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pdmd.teachers.conditioning.image_prompts import EncodedImageText, ImagePrompt
from pdmd.teachers.conditioning.prompt_files import read_image_prompts
from pdmd.teachers.conditioning.prompts import PromptEmbeddings, Prompts, prompts_of
from pdmd.teachers.families.pipelines import configuration, decoder, load_text_encoder
from pdmd.teachers.families.text import TextTeacher
from pdmd.teachers.families.tokens import check_head
from pdmd.teachers.families.wan_networks import (
    build_networks,
    compression_of,
    default_shift,
    load_networks,
    video_shape,
)
from pdmd.teachers.routed import RoutedTeacher
from pdmd.typing import Condition, Latents, expand

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = ["WanImageTeacher"]


class WanImageTeacher(TextTeacher):
    r"""One network of Wan image to video over latents of shape :math:`(C, F', H / 8, W / 8)`.

    Every time in [0, 1] can be asked. Conditions have ``prompt`` and ``first``, what the image
    gives: mask and latents of shape :math:`(C + 4, F', H / 8, W / 8)`, or latents of one frame
    where they replace it; those of the 2.1 also have ``image``, its embedding by CLIP. There is
    no condition without an image.

    Args:
        transformer: A ``WanTransformer3DModel`` of diffusers.
        height: Height of a video, a multiple of the compression times the network's patch.
        width: Width of a video, likewise.
        frames: Its frames, a multiple of the compression in time and one.
        compression: Pixels to one latent in time, height and width: (4, 8, 8), and (4, 16, 16)
            for the 5B.
        prompts: Turns prompts into conditions; a copy that trains has none.
        decode: Turns latents into videos in [0, 1], with shape :math:`(B, 3, F, H, W)`.
        shift: The shift recommended; 3 up to 832 x 480 pixels and 5 above by default.

    Raises:
        ValueError: If the size does not fit, the network reads something else, or the prompts are
            embeddings without first images or for another size.
    """

    takes_images = True

    def __init__(
        self,
        transformer: Any,
        *,
        height: int = 480,
        width: int = 832,
        frames: int = 81,
        compression: tuple[int, int, int] = (4, 8, 8),
        prompts: Prompts | None = None,
        decode: Callable[[Latents], Tensor] | None = None,
        shift: float | None = None,
    ) -> None:
        config = transformer.config
        channels = config.out_channels
        known = (channels, 2 * channels + compression[0])
        if config.in_channels not in known:
            raise ValueError(
                f"this transformer takes {config.in_channels} channels and makes {channels}; "
                f"image to video takes {known[0]} or {known[1]}"
            )
        if config.pos_embed_seq_len is not None:
            raise ValueError(
                "this transformer goes between a first and a last image (pos_embed_seq_len); only "
                "those of a first image are supported"
            )
        super().__init__(
            transformer,
            latent_shape=video_shape(config, height, width, frames, compression),
            shift=default_shift(height, width) if shift is None else shift,
            prompts=prompts,
            decode=decode,
        )
        self.size: dict[str, Any] = {
            "height": height,
            "width": width,
            "frames": frames,
            "compression": compression,
        }
        self.replaces = config.in_channels == channels
        self.entries = ("prompt", *_imaged(config))
        if prompts is not None and prompts.shapes is not None:
            self._check_shapes(prompts, prompts.shapes)

    @property
    def first_shape(self) -> tuple[int, ...]:
        """The shape of ``first`` of one prompt."""
        channels, length, *space = self.latent_shape
        beside = self.transformer.config.in_channels - channels
        return (channels, 1, *space) if self.replaces else (beside, length, *space)

    def _check_shapes(self, prompts: Prompts, found: Mapping[str, tuple[int | None, ...]]) -> None:
        first = self.first_shape
        for entry in self.entries[1:]:
            if entry not in found:
                raise ValueError(
                    f"{prompts} have no {entry!r}, which this teacher takes of first images; "
                    "embed prompts with images, with this teacher"
                )
        if found["first"] != first:
            raise ValueError(
                f"{prompts} have first images of shape {found['first']}, and videos of "
                f"{self.size['height']} x {self.size['width']} pixels and {self.size['frames']} "
                f"frames take {first}; embed the prompts with this teacher's height, width and "
                "frames, or give it theirs"
            )

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        height: int = 480,
        width: int = 832,
        frames: int = 81,
        shift: float | None = None,
        prompts: Sequence[ImagePrompt] = (),
        embeddings: Prompts | None = None,
        dtype: str | torch.dtype = "bfloat16",
        device: str | torch.device = "cpu",
        meta: bool = False,
    ) -> WanImageTeacher | RoutedTeacher:
        """Loads the transformers of a pipeline; encoders and VAE follow when first used.

        Args:
            folder: The pipeline's folder or hub name, such as
                ``"Wan-AI/Wan2.2-I2V-A14B-Diffusers"``.
            height: Height of a video.
            width: Width of a video.
            frames: Its frames.
            shift: The shift recommended; by default by the resolution.
            prompts: What a distillation draws from.
            embeddings: Turns prompts into conditions in place of the encoders.
            dtype: Type of all weights; those of the time's embedding stay in float32.
            device: Where they live.
            meta: Whether to leave the transformers' weights on the meta device.

        Returns:
            A teacher of one network, or of two behind their boundary.

        Raises:
            ValueError: If a part is missing, another family's, or made for text to video.
        """
        places: dict[str, Any] = {"dtype": dtype, "device": device}
        index = configuration("WanImageToVideoPipeline", folder)
        decode = decoder("AutoencoderKLWan", folder, **places)

        compression = compression_of(folder)
        size = {"height": height, "width": width, "num_frames": frames}
        encoders = _encoded_prompts(folder, prompts, size, places)
        text = prompts_of(embeddings, encoders)

        def make(transformer: Any) -> WanImageTeacher:
            teacher = cls(
                transformer,
                height=height,
                width=width,
                frames=frames,
                compression=compression,
                prompts=text,
                decode=decode,
                shift=shift,
            )
            if teacher.replaces and not index.get("expand_timesteps"):
                raise ValueError(
                    f"{folder} takes no first image; it is text to video, which WanTeacher (wan) "
                    "loads"
                )
            return teacher

        return load_networks(make, folder, meta=meta, **places)

    @classmethod
    def from_config(
        cls,
        *,
        height: int = 480,
        width: int = 832,
        frames: int = 81,
        boundary_ratio: float = 0.9,
        replaces_first_frame: bool = False,
        num_layers: int = 40,
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        ffn_dim: int = 13824,
        text_dim: int = 4096,
        image_dim: int | None = None,
        image_length: int = 257,
        latent_channels: int = 16,
        spatial_compression: int = 8,
        random_prompts: int = 8,
        text_length: int = 512,
        embeddings: Prompts | None = None,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device = "cpu",
        meta: bool = False,
        seed: int = 0,
    ) -> WanImageTeacher | RoutedTeacher:
        """Makes a teacher with random weights; by default the 2.2 A14B, of full size.

        For tests and measurements of cost: without ``embeddings`` its prompts, images included,
        have random embeddings too
        (:meth:`~pdmd.teachers.conditioning.prompts.PromptEmbeddings.random`).

        Args:
            height: Height of a video.
            width: Width of a video.
            frames: Its frames.
            boundary_ratio: The lowest time of the first of two networks; 0 makes one.
            replaces_first_frame: Whether the image takes the first frame's place, as in the 5B,
                instead of standing beside every frame.
            num_layers: Blocks.
            num_attention_heads: Heads of a block.
            attention_head_dim: Dimension of a head, even and at least 6.
            ffn_dim: Width of a block's perceptron.
            text_dim: Dimension of a token of text.
            image_dim: Dimension of a token of CLIP's; 1280 in the 2.1, none elsewhere.
            image_length: Tokens of CLIP's.
            latent_channels: Channels of the latents; 48 in the 5B.
            spatial_compression: Pixels to one latent in height and width; 16 in the 5B.
            random_prompts: How many prompts, besides none.
            text_length: Tokens of their embeddings.
            embeddings: Turns prompts into conditions instead.
            dtype: Type of the weights.
            device: Where they live.
            meta: Whether to make them without memory, on the meta device.
            seed: Seed of weights and embeddings.
        """
        check_head(attention_head_dim, 6)
        beside = 0 if replaces_first_frame else latent_channels + 4
        config = {
            "num_layers": num_layers,
            "num_attention_heads": num_attention_heads,
            "attention_head_dim": attention_head_dim,
            "ffn_dim": ffn_dim,
            "text_dim": text_dim,
            "in_channels": latent_channels + beside,
            "out_channels": latent_channels,
            "image_dim": image_dim,
        }
        if image_dim is not None:
            config["added_kv_proj_dim"] = num_attention_heads * attention_head_dim

        def make(transformer: Any) -> WanImageTeacher:
            return cls(
                transformer,
                height=height,
                width=width,
                frames=frames,
                compression=(4, spatial_compression, spatial_compression),
                prompts=embeddings,
            )

        places: dict[str, Any] = {"dtype": dtype, "device": device, "meta": meta}
        made = build_networks(make, config, boundary_ratio, seed=seed, **places)
        if embeddings is None:
            parts: Any = made.routed.denoisers if isinstance(made, RoutedTeacher) else [made]
            more = {"first": parts[0].first_shape}
            if image_dim is not None:
                more["image"] = (image_length, image_dim)
            size = {"length": text_length, "dim": text_dim, "more": more}
            text = PromptEmbeddings.random(random_prompts, masked=False, seed=seed, **size)
            for part in parts:
                part.text = text
        return made

    @classmethod
    def read_prompts(cls, path: str) -> Sequence[Any]:
        """Reads prompts by :func:`~pdmd.teachers.conditioning.prompt_files.read_image_prompts`."""
        return read_image_prompts(path)

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Puts the image in and evaluates the transformer at 1000 times the time."""
        rows = self.conditioned(condition, x_t)
        dtype = self.transformer.dtype
        first = rows["first"].to(x_t.dtype)
        times = (1000 * t).float()
        if self.replaces:
            whole = torch.cat([first, x_t[:, :, 1:]], 2)
            times = times[:, None] * self._unknown(x_t)
        else:
            whole = torch.cat([x_t, first], 1)
        image = rows["image"].to(dtype) if "image" in self.entries else None
        value = self.transformer(
            hidden_states=whole.to(dtype),
            timestep=times,
            encoder_hidden_states=rows["prompt"].to(dtype),
            encoder_hidden_states_image=image,
            return_dict=False,
        )[0].to(x_t.dtype)
        if not self.replaces:
            return value
        at = expand(t, x_t)
        known = torch.where(at > 0, (x_t[:, :, :1] - first) / at.clamp(min=1e-30), -first)
        return torch.cat([known.to(x_t.dtype), value[:, :, 1:]], 2)

    def _unknown(self, x_t: Latents) -> Tensor:
        """Returns 0 for the first frame's tokens and 1 for others, with shape (1, tokens)."""
        time, height, width = self.transformer.config.patch_size
        frames, rows, columns = x_t.shape[2:]
        tokens = torch.ones(frames // time, rows // height, columns // width, device=x_t.device)
        tokens[0] = 0
        return tokens.reshape(1, -1)

    def unconditional(self, condition: TensorDict, null: TensorDict) -> TensorDict:
        """Takes the text out and keeps the image."""
        rows = condition.clone(recurse=False)
        rows["prompt"] = null["prompt"].expand(len(condition["prompt"]), -1, -1)
        return rows


def _encoded_prompts(
    folder: str | Path,
    prompts: Sequence[ImagePrompt],
    size: dict[str, int],
    places: dict[str, Any],
) -> EncodedImageText:
    def embed_text(pipeline: Any, texts: list[str]) -> Any:
        from diffusers.pipelines.wan.pipeline_wan import WanPipeline
        from tensordict import TensorDict

        # the same encoding, but the image's pipeline cannot clean texts where ftfy is missing
        parts = {key: getattr(pipeline, key) for key in ("tokenizer", "text_encoder", "vae")}
        embeddings, _ = WanPipeline(**parts, scheduler=pipeline.scheduler).encode_prompt(
            texts, do_classifier_free_guidance=False, max_sequence_length=512
        )
        return TensorDict({"prompt": embeddings}, batch_size=[len(texts)])

    def embed_image(pipeline: Any, picture: Any) -> dict[str, Tensor]:
        device = pipeline.text_encoder.device
        frame = {key: size[key] for key in ("height", "width")}
        pixels = pipeline.video_processor.preprocess(picture, **frame)
        made = pipeline.prepare_latents(
            pixels.to(device, torch.float32),
            batch_size=1,
            **size,
            dtype=torch.float32,
            device=device,
            latents=torch.zeros(()),  # instead of noise, which is not wanted
        )
        entries = {"first": made[1]}
        if "image" in imaged:
            entries["image"] = pipeline.encode_image(picture, device)
        return entries

    load = partial(load_text_encoder, "WanImageToVideoPipeline", folder, vae=True, **places)
    imaged = _imaged(configuration("WanTransformer3DModel", folder, "transformer"))
    more: dict[str, Any] = {"image_keys": imaged, "prompts": prompts, "folder": folder}
    return EncodedImageText(load, embed_text, embed_image, null="", **more)


def _imaged(config: Mapping[str, Any]) -> tuple[str, ...]:
    return ("first",) if config.get("image_dim") is None else ("first", "image")
