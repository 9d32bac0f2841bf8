"""Prompts of a text and an image: the first of a video, or one that is edited."""

from __future__ import annotations

import functools
import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from pdmd.arguments import checked
from pdmd.extras import require
from pdmd.files import own_digest, say
from pdmd.teachers.conditioning.fingerprints import encoder_fingerprint
from pdmd.teachers.conditioning.frames import (
    UnusablePicture,
    is_video,
    opened_picture,
    read_frames,
    to_rgb,
)
from pdmd.teachers.conditioning.prompts import EncodedText, Prompts, check_finite
from pdmd.typing import join_conditions

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = [
    "EncodedEdits",
    "EncodedImage",
    "EncodedImageText",
    "ImagePrompt",
    "ImageTexts",
    "NamedImagePrompts",
    "check_proportions",
    "name_of",
]

TOLERANCE = 0.02
"""Largest relative difference of aspect ratios: an image cropped to even sizes passes."""


@checked
@dataclass(frozen=True)
class EncodedImage:
    """An image known by its digest only: a store keeps its embeddings and not its pixels.

    Args:
        sha256: The digest of its pixels, in hexadecimal.
    """

    sha256: str


@checked
@dataclass(frozen=True)
class ImagePrompt:
    """A text, and the first image of its video or the image that it edits.

    Args:
        text: The text.
        image: The path or URL of a file, its bytes, a PIL image, or a floating-point tensor of
            shape :math:`(3, H, W)` in [0, 1], which is rounded to 8 bits. It is resized to the
            video, without keeping its aspect ratio.
    """

    text: str
    image: Any

    def picture(self) -> Any:
        """Returns the image as an RGB image of PIL, rotated by its EXIF orientation.

        Of a video it is the first frame.

        Raises:
            ValueError: If the image cannot be read, or is not of a supported type.
        """
        require("diffusers", "PIL")
        from PIL import Image

        image = self.image
        if is_video(image):
            return read_frames(image, 1)[0]
        if isinstance(image, str | Path | bytes):
            called = f"of {self.text!r}" if isinstance(image, bytes) else str(image)
            try:
                with opened_picture(image) as opened:
                    return to_rgb(opened)
            except UnusablePicture as error:
                raise ValueError(f"cannot read the image {called} ({error})") from error
            except Exception as error:  # file systems raise any class
                raise ValueError(f"cannot read the image {called} ({say(error)})") from error
        if isinstance(image, Tensor):
            if image.ndim != 3 or len(image) != 3 or not image.is_floating_point():
                raise ValueError(
                    "an image tensor must be floating point with shape (3, H, W) in [0, 1], got "
                    f"{image.dtype} of shape {tuple(image.shape)}"
                )
            low, high = image.min().item(), image.max().item()
            if not (low >= 0 and high <= 1):
                raise ValueError(
                    f"the values of an image must be in [0, 1], got {low:.4g} to {high:.4g}"
                )
            pixels = (255 * image.float().cpu()).round().to(torch.uint8)
            return Image.fromarray(pixels.permute(1, 2, 0).numpy())
        if isinstance(image, Image.Image):
            try:
                return to_rgb(image)
            except UnusablePicture as error:
                raise ValueError(f"cannot read the image of {self.text!r} ({error})") from error
        if isinstance(image, EncodedImage):
            raise ValueError(
                f"only the embeddings of the image of {self.text!r} are stored, not the image; "
                "pass an ImagePrompt with the image to encode it again"
            )
        raise ValueError(
            f"an image must be a path, a PIL image or a tensor, got a {type(image).__name__}"
        )

    @functools.cached_property
    def name(self) -> str:
        """The identity of the prompt, independent of the location of its image.

        Its text and the digest of the pixels, as JSON.

        Raises:
            ValueError: If the image cannot be read, or is not of a supported type.
        """
        if isinstance(self.image, EncodedImage):
            sha256 = self.image.sha256
        else:
            picture = self.picture()
            content = f"{picture.width} x {picture.height}\n".encode() + picture.tobytes()
            sha256 = hashlib.sha256(content).hexdigest()
        return json.dumps({"prompt": self.text, "image": sha256}, ensure_ascii=False)

    @classmethod
    def named(cls, name: str) -> ImagePrompt:
        """Returns the prompt of a ``name``, with an :class:`EncodedImage` for its image."""
        fields = json.loads(name)
        return cls(fields["prompt"], EncodedImage(fields["image"]))


@checked
class NamedImagePrompts(Sequence[ImagePrompt]):
    """A sequence of prompts built on access from their names.

    Args:
        names: The names, as :attr:`ImagePrompt.name` returns them.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> ImagePrompt: ...
    @overload
    def __getitem__(self, index: slice) -> list[ImagePrompt]: ...
    def __getitem__(self, index: int | slice) -> ImagePrompt | list[ImagePrompt]:
        if isinstance(index, slice):
            return [ImagePrompt.named(name) for name in self.names[index]]
        return ImagePrompt.named(self.names[index])


def name_of(prompt: str | ImagePrompt) -> str:
    """Returns the key of a prompt in a store: a text itself, or :attr:`ImagePrompt.name`."""
    return prompt.name if isinstance(prompt, ImagePrompt) else prompt


@checked
def check_proportions(prompt: ImagePrompt, height: int, width: int) -> None:
    """Checks that the aspect ratio of an image is that of the video.

    Args:
        prompt: The prompt with the image.
        height: Height of the video in pixels.
        width: Width of the video in pixels.

    Raises:
        ValueError: If the aspect ratios differ by more than 2 %.
    """
    picture = prompt.picture()
    found, expected = picture.width / picture.height, width / height
    if not 1 - TOLERANCE <= found / expected <= 1 + TOLERANCE:
        called = prompt.image if isinstance(prompt.image, str) else f"of {prompt.text!r}"
        raise ValueError(
            f"the image {called} is {picture.width} x {picture.height}, and the video {width} x "
            f"{height}: crop it to this aspect ratio, choose another size, or pass --stretch"
        )


class ImageTexts(Prompts):
    """Texts with images, encoded by the encoders of a family, which are loaded on first use.

    Every prompt needs an image. The null prompt ``None``, for guidance, has the text fields only.
    A subclass implements :meth:`embed`.

    Args:
        load: Loads the encoders.
        embed_text: Maps the encoders and a list of texts to a condition, for the null prompt.
        image_keys: The keys of the fields that an image gives a prompt.
        prompts: The default prompts of a distillation.
        null: The text of the null prompt.
        folder: Folder or hub name of the pipeline, for the fingerprint of the encoders.
        how: Settings that change the embeddings, as JSON values; they enter the fingerprint.

    Attributes:
        load: Loads the encoders, once.
        inner: The prompts of the text encoder alone.

    Raises:
        ValueError: If a prompt is not an :class:`ImagePrompt`.
    """

    def __init__(
        self,
        load: Callable[[], Any],
        embed_text: Callable[[Any, list[str]], TensorDict],
        *,
        image_keys: Sequence[str],
        prompts: Sequence[ImagePrompt] = (),
        null: str,
        folder: str | Path = "",
        how: Mapping[str, Any] | None = None,
    ) -> None:
        self.load = functools.cache(load)
        self.inner = EncodedText(self.load, embed_text, null=null)
        self._imaged, self._folder, self._how = tuple(image_keys), folder, dict(how or {})
        self._prompts = tuple(prompts)
        self._check(self._prompts)

    @abstractmethod
    def embed(self, texts: list[str], pictures: list[Any]) -> TensorDict:
        """Encodes texts with their images.

        Args:
            texts: The texts.
            pictures: Their images, of PIL.
        """

    @property
    def prompts(self) -> Sequence[Any]:
        """The default prompts of a distillation.

        Raises:
            ValueError: If there are none.
        """
        return self._prompts or self.inner.prompts  # which raises

    @property
    def image_keys(self) -> tuple[str, ...]:
        return self._imaged

    def fingerprint(self) -> str | None:
        """Returns a digest of the files of all encoders, including the VAE, and their settings."""
        files = encoder_fingerprint(self._folder, images=True) if self._folder else None
        return own_digest({"encoder": files, **self._how}) if files else None

    @torch.no_grad()
    def encode(self, prompts: Sequence[Any]) -> TensorDict:
        """Encodes prompts; either all or none of them are ``None``.

        Raises:
            ValueError: If a prompt is not an :class:`ImagePrompt`, its image cannot be read, or
                an embedding is not finite.
        """
        if all(prompt is None for prompt in prompts):
            return self.inner.encode(prompts)
        self._check(prompts)
        pictures = [prompt.picture() for prompt in prompts]
        condition = self.embed([prompt.text for prompt in prompts], pictures)
        check_finite(condition, [prompt.text for prompt in prompts])
        return condition

    def _check(self, prompts: Sequence[Any]) -> None:
        for prompt in prompts:
            if not isinstance(prompt, ImagePrompt):
                raise ValueError(
                    f"a prompt must be an ImagePrompt (a text with its first image), got "
                    f"{prompt!r}"
                )


@checked
class EncodedImageText(ImageTexts):
    """Texts and first images encoded apart.

    Args:
        load: Loads the encoders.
        embed_text: Maps the encoders and a list of texts to a condition.
        embed_image: Maps the encoders and one PIL image to its fields, with batch size 1.
        arguments: As :class:`ImageTexts` takes.

    Raises:
        ValueError: If a prompt is not an :class:`ImagePrompt`.
    """

    def __init__(
        self,
        load: Callable[[], Any],
        embed_text: Callable[[Any, list[str]], TensorDict],
        embed_image: Callable[[Any, Any], dict[str, Tensor]],
        **arguments: Any,
    ) -> None:
        super().__init__(load, embed_text, **arguments)
        self._embed_image = embed_image

    def embed(self, texts: list[str], pictures: list[Any]) -> TensorDict:
        """Encodes the texts, and each image."""
        condition = self.inner.encode(texts)
        rows = [self._embed_image(self.load(), picture) for picture in pictures]
        for key in rows[0]:
            condition[key] = torch.cat([row[key] for row in rows])
        return condition


@checked
class EncodedEdits(ImageTexts):
    """Instructions encoded together with the images that they edit.

    Args:
        load: Loads the encoders.
        embed_text: Maps the encoders and a list of texts to a condition, for the null prompt.
        embed_pair: Maps the encoders, a text and its PIL image to a condition of batch size 1.
        arguments: As :class:`ImageTexts` takes.

    Raises:
        ValueError: If a prompt is not an :class:`ImagePrompt`.
    """

    def __init__(
        self,
        load: Callable[[], Any],
        embed_text: Callable[[Any, list[str]], TensorDict],
        embed_pair: Callable[[Any, str, Any], TensorDict],
        **arguments: Any,
    ) -> None:
        super().__init__(load, embed_text, **arguments)
        self._embed_pair = embed_pair

    def embed(self, texts: list[str], pictures: list[Any]) -> TensorDict:
        """Encodes each text with its image."""
        pairs = zip(texts, pictures, strict=True)
        return join_conditions(*(self._embed_pair(self.load(), *pair) for pair in pairs))
