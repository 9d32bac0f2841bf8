r"""Wan image to video: transformers that continue a first image (2.1, 2.2 A14B and 2.2 5B).

Time, velocity, text, networks and guidance are those of :mod:`~pdmd.teachers.families.wan`. The
first image enters in one of two ways.

* 2.1 and the 2.2 A14B take :math:`C + 4` channels beside the latents: a mask of the known frames,
  four to a latent, and the latents of a video of the image followed by grey frames. The 2.1 also
  takes the image's embedding by CLIP.
* In the 2.2 5B, the image's latents :math:`c` replace the first frame, whose time is 0. The known
  frame needs no network: there the velocity is the exact
  :math:`\mathbb E[\varepsilon - x_0 \mid x_t] = (x_t - c) / t`, so that every sampler ends at
  :math:`c`, and teacher and fake score are equal.

Guidance extrapolates from the same image without its text.

References:
    Wan Team, Wan: Open and Advanced Large-Scale Video Generative Models, arXiv:2503.20314.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pdmd.extras import require
from pdmd.teachers.conditioning.image_prompts import EncodedImageText
from pdmd.teachers.conditioning.prompt_files import read_image_prompts
from pdmd.teachers.conditioning.prompts import Prompts
from pdmd.teachers.families.pipelines import configuration, network_configuration
from pdmd.teachers.families.text_pipelines import load_text_encoder
from pdmd.teachers.families.wan_networks import LAYOUT, SIZES, WanNetworkTeacher
from pdmd.typing import Condition, Latents, expand

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = ["WanImageTeacher"]


class WanImageTeacher(WanNetworkTeacher):
    r"""One network of Wan image to video over latents of shape :math:`(C, F', H / 8, W / 8)`.

    Every time in [0, 1] can be evaluated. Conditions have ``prompt`` and ``first``, computed from
    the image: mask and latents of shape :math:`(C + 4, F', H / 8, W / 8)`, or latents of one frame
    where they replace it; those of the 2.1 also have ``image``, its embedding by CLIP. There is
    no condition without an image.

    Arguments and errors are those of
    :class:`~pdmd.teachers.families.wan_networks.WanNetworkTeacher`. Random weights are the 2.2
    A14B's by default. Among the sizes, ``replaces_first_frame`` is whether the image replaces the
    first frame, as in the 5B, ``image_dim`` the dimension of a token of CLIP's (1280 in the 2.1,
    ``None`` elsewhere) and ``image_length`` their number.

    Raises:
        ValueError: Also if the prompts are embeddings without first images or of another size.
    """

    layout = replace(
        LAYOUT, pipeline="WanImageToVideoPipeline", task="image-to-video", takes_image=True
    )
    released = {
        **SIZES,
        "boundary_ratio": 0.9,
        "replaces_first_frame": False,
        "image_dim": None,
        "image_length": 257,
    }
    takes_images = True
    one_size = "that at which its prompts' first images are encoded"

    def __init__(self, backbone: Any, *, prompts: Prompts | None = None, **arguments: Any) -> None:
        super().__init__(backbone, prompts=prompts, **arguments)
        self.replaces = backbone.config.in_channels == backbone.config.out_channels
        self.condition_keys = ("prompt", *_image_keys(backbone.config))
        if prompts is not None and prompts.shapes is not None:
            self._check_shapes(prompts, prompts.shapes)

    @property
    def first_shape(self) -> tuple[int, ...]:
        """The shape of ``first`` of one prompt."""
        channels, length, *space = self.latent_shape
        beside = self.backbone.config.in_channels - channels
        return (channels, 1, *space) if self.replaces else (beside, length, *space)

    def _check_shapes(self, prompts: Prompts, found: Mapping[str, tuple[int | None, ...]]) -> None:
        first = self.first_shape
        for key in self.condition_keys[1:]:
            if key not in found:
                raise ValueError(
                    f"{prompts} have no {key!r}, which this teacher takes of first images; "
                    "embed prompts with images, with this teacher"
                )
        if found["first"] != first:
            raise ValueError(
                f"{prompts} have first images of shape {found['first']}, and videos of "
                f"{self.options['height']} x {self.options['width']} pixels and "
                f"{self.options['frames']} frames take {first}; embed the prompts with this "
                "teacher's height, width and frames, or give it theirs"
            )

    @classmethod
    def check_network(cls, config: Any, time: int) -> None:
        channels = config.out_channels
        known = (channels, 2 * channels + time)
        if config.in_channels not in known:
            raise ValueError(
                f"this transformer has {config.in_channels} input and {channels} output channels; "
                f"image to video takes {known[0]} or {known[1]}"
            )
        if config.pos_embed_seq_len is not None:
            raise ValueError(
                "this transformer interpolates between a first and a last image "
                "(pos_embed_seq_len); only those of a first image are supported"
            )

    @classmethod
    def network_config(cls, **sizes: Any) -> dict[str, Any]:
        replaces, _ = sizes.pop("replaces_first_frame"), sizes.pop("image_length")
        config = super().network_config(**sizes)
        if not replaces:
            config["in_channels"] += config["out_channels"] + 4
        if config["image_dim"] is not None:
            config["added_kv_proj_dim"] = (
                config["num_attention_heads"] * config["attention_head_dim"]
            )
        return config

    @classmethod
    def read_options(cls, folder: str | Path) -> dict[str, Any]:
        config = network_configuration(cls.layout.network, folder, cls.layout.slots[0])
        index = configuration(cls.layout.pipeline, folder)
        if config["in_channels"] == config["out_channels"] and not index.get("expand_timesteps"):
            raise ValueError(
                f"{folder} takes no first image; it is text to video, which WanTeacher (wan) loads"
            )
        return super().read_options(folder)

    @classmethod
    def load_encoder(cls, folder: str | Path, **place: Any) -> Any:
        return load_text_encoder(cls.layout.pipeline, folder, vae=True, **place)

    @classmethod
    def read_encoder(
        cls,
        folder: str | Path,
        prompts: Sequence[Any],
        length: int | None,
        options: Mapping[str, Any],
        **place: Any,
    ) -> Prompts:
        config = network_configuration(cls.layout.network, folder, cls.layout.slots[0])
        keys = _image_keys(config)
        return EncodedImageText(
            partial(cls.load_encoder, folder, **place),
            cls.embed_texts,
            partial(encode_image, keys=keys, options=options),
            image_keys=keys,
            prompts=prompts,
            null=cls.null_text,
            folder=folder,
        )

    @classmethod
    def encode_texts(cls, pipeline: Any, texts: list[str], length: int | None) -> dict[str, Any]:
        require("diffusers", "diffusers")
        from diffusers.pipelines.wan.pipeline_wan import WanPipeline

        # the same encoding, but the image's pipeline cannot clean texts where ftfy is missing
        parts = {key: getattr(pipeline, key) for key in ("tokenizer", "text_encoder", "vae")}
        return super().encode_texts(
            WanPipeline(**parts, scheduler=pipeline.scheduler), texts, length
        )

    @classmethod
    def read_prompts(cls, path: str) -> Sequence[Any]:
        """Reads prompts by :func:`~pdmd.teachers.conditioning.prompt_files.read_image_prompts`."""
        return read_image_prompts(path)

    def random_shapes(self, sizes: Mapping[str, Any]) -> Mapping[str, Sequence[int]]:
        shapes = {"first": self.first_shape}
        if sizes["image_dim"] is not None:
            shapes["image"] = (sizes["image_length"], sizes["image_dim"])
        return shapes

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Inserts the image and evaluates the network at 1000 times the time."""
        rows = self.conditioned(condition, x_t)
        dtype = self.backbone.dtype
        first = rows["first"].to(x_t.dtype)
        times = (1000 * t).float()
        if self.replaces:
            whole = torch.cat([first, x_t[:, :, 1:]], 2)
            times = times[:, None] * self._unknown(x_t)
        else:
            whole = torch.cat([x_t, first], 1)
        image = rows["image"].to(dtype) if "image" in self.condition_keys else None
        value = self.backbone(
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
        time, height, width = self.backbone.config.patch_size
        frames, rows, columns = x_t.shape[2:]
        tokens = torch.ones(frames // time, rows // height, columns // width, device=x_t.device)
        tokens[0] = 0
        return tokens.reshape(1, -1)

    def encode_negative(self, text: str) -> Condition:
        """Encodes a text alone: the image is the same on both sides of guidance.

        Raises:
            ValueError: If there is no text encoder, as with embeddings.
        """
        prompts = self._text()
        if not isinstance(prompts, EncodedImageText):
            raise ValueError(
                f"{prompts} have no negative prompt {text!r:.60}; load the teacher with its text "
                "encoder, or leave the negative prompt out"
            )
        return prompts.inner.encode([text])

    def unconditional(self, condition: TensorDict, null: TensorDict) -> TensorDict:
        """Removes the text and keeps the image."""
        rows = condition.clone(recurse=False)
        rows["prompt"] = null["prompt"].expand(len(condition["prompt"]), -1, -1)
        return rows


def encode_image(
    pipeline: Any, picture: Any, *, keys: Sequence[str], options: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Encodes a first image as a pipeline does.

    Args:
        pipeline: The pipeline, with its encoders.
        picture: The image, of PIL.
        keys: What is encoded: ``first``, and ``image`` for the 2.1.
        options: The height, width and frames of the video.

    Returns:
        The conditions of one video, with a leading dimension of 1.
    """
    device = pipeline.text_encoder.device
    size = {key: options[key] for key in ("height", "width")}
    pixels = pipeline.video_processor.preprocess(picture, **size)
    _, first = pipeline.prepare_latents(
        pixels.to(device, torch.float32),
        batch_size=1,
        **size,
        num_frames=options["frames"],
        dtype=torch.float32,
        device=device,
        latents=torch.zeros(()),  # in place of noise, which is not needed
    )[:2]
    if "image" not in keys:
        return {"first": first}
    return {"first": first, "image": pipeline.encode_image(picture, device)}


def _image_keys(config: Mapping[str, Any]) -> tuple[str, ...]:
    return ("first",) if config.get("image_dim") is None else ("first", "image")
