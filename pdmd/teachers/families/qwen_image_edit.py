r"""Qwen-Image-Edit: transformers that edit an image by a text (2509 and 2511).

Networks, time and guidance are those of :mod:`~pdmd.teachers.families.qwen_networks`. The image
enters twice. Its latents are tokens after the noisy ones, with positions of their own; in the 2511
(``zero_cond_t``) their time is 0. And Qwen 2.5 VL encodes the text together with the image, scaled
to about :math:`384^2` pixels. Guidance leads away from the empty text with the same image, so each
condition also has that embedding, ``null_prompt``.

The language model is given the kind of every token, from which it computes positions of images in
three axes, as in training; the pipelines of diffusers up to 0.42 leave it out with transformers 5.
Pictures are read by PIL, without torchvision.

References:
    Wu et al., Qwen-Image Technical Report, arXiv:2508.02324.
    https://github.com/huggingface/diffusers/issues/14194
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pdmd.teachers.conditioning.image_prompts import EncodedEdits
from pdmd.teachers.conditioning.prompt_files import read_image_prompts
from pdmd.teachers.conditioning.prompts import Prompts
from pdmd.teachers.conditioning.text_lengths import with_full_lengths
from pdmd.teachers.families.qwen_networks import LAYOUT, SIZES, QwenNetworkTeacher
from pdmd.teachers.families.text_pipelines import load_image_processor, load_text_encoder
from pdmd.teachers.families.tokens import check_size
from pdmd.teachers.families.vaes import encode_pixels
from pdmd.typing import Condition, Latents

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = ["EditEncoders", "QwenImageEditTeacher", "encode_edit", "reference_size", "scaled_size"]

SEEN_AREA = 384**2
"""Pixels of the image that the language model sees."""

REFERENCE_AREA = 1024**2
"""Pixels of the image whose latents the network sees."""

IMAGE_TOKEN = "<|image_pad|>"
IMAGED = f"Picture 1: <|vision_start|>{IMAGE_TOKEN}<|vision_end|>"


class QwenImageEditTeacher(QwenNetworkTeacher):
    r"""Qwen-Image-Edit over latents of shape :math:`(16, H / 8, W / 8)`.

    Every time in [0, 1] can be evaluated. A prompt is a text with one image
    (:class:`~pdmd.teachers.conditioning.image_prompts.ImagePrompt`), stretched to the reference's
    size. Conditions have ``prompt`` and ``mask``, ``reference``, the image's latents, and
    ``null_prompt``, the embedding of the empty text with the image, of shape :math:`(1, L, D)`.
    There is no condition without an image. Random weights are the 2511's by default; among the
    sizes, ``null_length`` is the length of random ``null_prompt``.

    Args:
        backbone: A ``QwenImageTransformer2DModel`` of diffusers.
        height: Height of an image, a multiple of twice the compression: of 16.
        width: Width of an image, as the height.
        reference_height: Height at which the image is encoded; by default that of
            :math:`1024^2` pixels in the sample's proportions, as in the pipeline.
        reference_width: Its width.
        compression: Pixels of an image to one of its latents, in height and width.
        arguments: As :class:`~pdmd.teachers.families.text.TextTeacher` takes.

    Raises:
        ValueError: If a size does not fit, the network takes guidance as an input, or prompts
            are embeddings without images or with those of another size.
    """

    layout = replace(
        LAYOUT,
        pipeline="QwenImageEditPlusPipeline",
        task="image-to-image",
        takes_image=True,
    )
    released = {**SIZES, "zero_cond_t": True, "null_length": 205}
    options = {
        **QwenNetworkTeacher.options,
        "reference_height": None,
        "reference_width": None,
    }
    condition_keys = ("prompt", "reference", "null_prompt")
    takes_images = True
    one_size = "that at which its prompts' images are encoded"

    def __init__(self, backbone: Any, *, prompts: Prompts | None = None, **arguments: Any) -> None:
        super().__init__(backbone, prompts=prompts, **arguments)
        if prompts is not None and prompts.shapes is not None:
            self._check_shapes(prompts, prompts.shapes)

    @classmethod
    def network_config(cls, *, null_length: int, **sizes: Any) -> dict[str, Any]:
        return super().network_config(**sizes)

    @classmethod
    def complete_options(cls, config: Any, options: dict[str, Any]) -> dict[str, Any]:
        height, width = reference_size(options)
        check_size(
            2 * options["compression"],
            height=options["height"],
            width=options["width"],
            reference_height=height,
            reference_width=width,
        )
        return {**options, "reference_height": height, "reference_width": width}

    @property
    def reference_shape(self) -> tuple[int, int, int]:
        """The shape of ``reference`` of one prompt."""
        unit = self.options["compression"]
        height, width = reference_size(self.options)
        return self.latent_shape[0], height // unit, width // unit

    def _check_shapes(self, prompts: Prompts, found: Mapping[str, tuple[int | None, ...]]) -> None:
        for key in self.condition_keys:
            if key not in found:
                raise ValueError(
                    f"{prompts} have no {key!r}, which this teacher takes of images; embed "
                    "prompts with images, with this teacher"
                )
        if found["reference"] != self.reference_shape:
            height, width = reference_size(self.options)
            raise ValueError(
                f"{prompts} have images of shape {found['reference']}, and images of {height} x "
                f"{width} pixels are {self.reference_shape}; embed the prompts with this "
                "teacher's sizes, or give it theirs"
            )

    @classmethod
    def load_encoder(cls, folder: str | Path, **place: Any) -> EditEncoders:
        pipeline = load_text_encoder(cls.layout.pipeline, folder, vae=True, **place)
        return EditEncoders(
            pipeline, load_image_processor("Qwen2VLImageProcessor", folder, "processor")
        )

    @classmethod
    def read_encoder(
        cls,
        folder: str | Path,
        prompts: Sequence[Any],
        length: int | None,
        options: Mapping[str, Any],
        **place: Any,
    ) -> Prompts:
        size = reference_size(options)
        return EncodedEdits(
            partial(cls.load_encoder, folder, **place),
            cls.embed_texts,
            partial(encode_edit, null=cls.null_text, size=size),
            image_keys=("reference", "null_prompt"),
            prompts=prompts,
            null=cls.null_text,
            folder=folder,
        )

    @classmethod
    def encode_texts(cls, pipeline: Any, texts: list[str], length: int | None) -> dict[str, Any]:
        rows = [pipeline.encode(text)[0] for text in texts]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(padded.shape[1]) < lengths[:, None]
        return {"prompt": padded, "mask": mask.to(padded.device)}

    @classmethod
    def read_prompts(cls, path: str) -> Sequence[Any]:
        """Reads prompts by :func:`~pdmd.teachers.conditioning.prompt_files.read_image_prompts`."""
        return read_image_prompts(path)

    def random_shapes(self, sizes: Mapping[str, Any]) -> Mapping[str, Sequence[int]]:
        null = (1, sizes["null_length"], sizes["joint_attention_dim"])
        return {"reference": self.reference_shape, "null_prompt": null}

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates the network on the noisy tokens, followed by the image's."""
        rows = self.conditioned(condition, x_t)
        return self.evaluate(x_t, t, rows, [rows["reference"]])

    def encode_negative(self, text: str) -> Condition:
        """Raises an error: guidance leads away from the empty text with the same image.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            f"{type(self).__name__} has no negative prompt {text!r:.60}: it would be encoded with "
            "every image; leave it out, and guidance leads away from the empty text"
        )

    def unconditional(self, condition: TensorDict, null: TensorDict) -> TensorDict:
        """Replaces the text by the empty one with the same image."""
        rows = condition.clone(recurse=False)
        rows["prompt"] = condition["null_prompt"].squeeze(1)
        return with_full_lengths(rows)


@dataclass(frozen=True)
class EditEncoders:
    """The parts of a pipeline that encode a text with an image.

    Attributes:
        pipeline: The pipeline, without its network.
        pictures: The image processor of the language model.
    """

    pipeline: Any
    pictures: Any

    def encode(self, text: str, picture: Any = None) -> Tensor:
        """Encodes a text, alone or with an image.

        Args:
            text: The text.
            picture: The image, of PIL.

        Returns:
            Hidden states of shape :math:`(1, L, D)`, without those of the system's prompt.
        """
        pipeline = self.pipeline
        device = pipeline.text_encoder.device
        seen, inputs = "", {}
        if picture is not None:
            inputs = dict(self.pictures(images=[picture], return_tensors="pt"))
            patches = int(inputs["image_grid_thw"][0].prod())
            number = patches // self.pictures.merge_size**2
            seen = IMAGED.replace(IMAGE_TOKEN, IMAGE_TOKEN * number)
        words = pipeline.prompt_template_encode.format(seen + text)
        ids = pipeline.tokenizer(words, return_tensors="pt")["input_ids"]
        is_image = ids == pipeline.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        if picture is not None and "mm_token_type_ids" in _arguments(pipeline.text_encoder):
            inputs["mm_token_type_ids"] = is_image.int()
        inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        found = pipeline.text_encoder(
            **{key: value.to(device) for key, value in inputs.items()}, output_hidden_states=True
        )
        return found.hidden_states[-1][:, pipeline.prompt_template_encode_start_idx :]


def encode_edit(
    encoders: EditEncoders, text: str, picture: Any, *, null: str, size: tuple[int, int]
) -> TensorDict:
    """Encodes a text and the image that it edits, as the pipeline does.

    Args:
        encoders: The encoders.
        text: The text.
        picture: The image, of PIL.
        null: The text of the null prompt.
        size: Height and width at which the image is encoded.

    Returns:
        The condition, of batch size 1.
    """
    from tensordict import TensorDict

    pipeline = encoders.pipeline
    seen = pipeline.image_processor.resize(picture, *scaled_size(*size, SEEN_AREA))
    prompt, empty = (encoders.encode(words, seen) for words in (text, null))
    pixels = pipeline.image_processor.preprocess(picture, *size)[:, :, None]
    reference = encode_pixels(pipeline.vae, pixels.to(pipeline.vae.device))[:, :, 0]
    mask = torch.ones(prompt.shape[:2], dtype=torch.bool, device=prompt.device)
    fields = {
        "prompt": prompt,
        "mask": mask,
        "reference": reference,
        "null_prompt": empty[:, None],
    }
    return TensorDict(fields, batch_size=[1])


def reference_size(options: Mapping[str, Any]) -> tuple[int, int]:
    """Returns the height and width at which an image is encoded.

    Raises:
        ValueError: If only one of them is given.
    """
    given = options.get("reference_height"), options.get("reference_width")
    if None not in given:
        return given  # type: ignore[return-value]
    if given != (None, None):
        raise ValueError(
            f"reference_height and reference_width are given together or not, got {given}"
        )
    return scaled_size(options["height"], options["width"], REFERENCE_AREA)


def scaled_size(height: int, width: int, area: int) -> tuple[int, int]:
    """Returns a height and width of about an area in given proportions, multiples of 32.

    Args:
        height: Height of the proportions.
        width: Their width.
        area: The area in pixels.
    """
    wide = math.sqrt(area * (width / height))
    tall = wide / (width / height)
    return round(tall / 32) * 32, round(wide / 32) * 32


def _arguments(model: Any) -> Mapping[str, Any]:
    return inspect.signature(model.forward).parameters
