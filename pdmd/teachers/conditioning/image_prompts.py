"""Prompts of a text and a first image, for families that go on from an image."""

from __future__ import annotations

import functools
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from pdmd.files import locate, own_digest, say
from pdmd.teachers.conditioning.fingerprints import encoder_fingerprint
from pdmd.teachers.conditioning.prompts import EncodedText, Prompts

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = [
    "EncodedImage",
    "EncodedImageText",
    "ImagePrompt",
    "NamedImagePrompts",
    "check_proportions",
    "name_of",
]

TOLERANCE = 0.02
"""How far proportions may be from a video's: as those of a picture that was cut to even sizes."""


@dataclass(frozen=True)
class EncodedImage:
    """An image of which a store holds what encoders made, and not the image.

    Attributes:
        sha256: The digest of its pixels.
    """

    sha256: str


@dataclass(frozen=True)
class ImagePrompt:
    """A text and the image that its video begins with.

    Attributes:
        text: The text.
        image: A file's path or URL, its bytes, an image of PIL, or a tensor of shape
            :math:`(3, H, W)` in [0, 1], which is rounded to 8 bits as files are. It is stretched
            to the video's size.
    """

    text: str
    image: Any

    def picture(self) -> Any:
        """Returns the image as PIL's, in colours and upright, as its EXIF orientation has it.

        Raises:
            ValueError: If it cannot be read or is none.
        """
        from PIL import Image, ImageOps, UnidentifiedImageError

        image = self.image
        if isinstance(image, str | Path | bytes):
            called = f"of {self.text!r}" if isinstance(image, bytes) else str(image)
            try:
                with _opened(image) as file, Image.open(file) as opened:
                    return ImageOps.exif_transpose(opened).convert("RGB")
            except UnidentifiedImageError as error:
                raise ValueError(
                    f"cannot read the image {called} (it is of no format that is known)"
                ) from error
            except Exception as error:  # file systems raise of any class
                raise ValueError(f"cannot read the image {called} ({say(error)})") from error
        if isinstance(image, Tensor):
            if image.ndim != 3 or len(image) != 3 or not image.is_floating_point():
                raise ValueError(
                    "an image is a floating-point tensor of shape (3, H, W) in [0, 1], got "
                    f"{image.dtype} of {tuple(image.shape)}"
                )
            low, high = image.min().item(), image.max().item()
            if not (low >= 0 and high <= 1):
                raise ValueError(f"an image's values are in [0, 1], got {low:.4g} to {high:.4g}")
            levels = (255 * image.float().cpu()).round().to(torch.uint8)
            return Image.fromarray(levels.permute(1, 2, 0).numpy())
        if isinstance(image, Image.Image):
            return ImageOps.exif_transpose(image).convert("RGB")
        if isinstance(image, EncodedImage):
            raise ValueError(
                f"the image of {self.text!r} is not stored, only what encoders made of it; name "
                "the image to encode it again"
            )
        raise ValueError(
            f"an image is a path, an image of PIL or a tensor, got a {type(image).__name__}"
        )

    @functools.cached_property
    def name(self) -> str:
        """What tells it from other prompts wherever its image lies: its text and pixels, as JSON.

        Raises:
            ValueError: If its image cannot be read or is none.
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
        """Returns the prompt of a :attr:`name`, its image an :class:`EncodedImage`."""
        known = json.loads(name)
        return cls(known["prompt"], EncodedImage(known["image"]))


class NamedImagePrompts(Sequence[ImagePrompt]):
    """Prompts by their names, made as they are asked for.

    Args:
        names: The names.
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
    """Returns the text by which a prompt is stored: its own, or its :attr:`~ImagePrompt.name`."""
    return prompt.name if isinstance(prompt, ImagePrompt) else prompt


def check_proportions(prompt: ImagePrompt, height: int, width: int) -> None:
    """Checks that an image would not look stretched at a video's size.

    Args:
        prompt: The prompt of the image.
        height: The video's height.
        width: Its width.

    Raises:
        ValueError: If its proportions are others, by more than 2 percent.
    """
    picture = prompt.picture()
    own, wanted = picture.width / picture.height, width / height
    if not 1 - TOLERANCE <= own / wanted <= 1 + TOLERANCE:
        called = prompt.image if isinstance(prompt.image, str) else f"of {prompt.text!r}"
        raise ValueError(
            f"the image {called} is {picture.width} x {picture.height}, and the video {width} x "
            f"{height}: cut it to these proportions, choose another size, or pass --stretch"
        )


def _opened(image: str | Path | bytes) -> Any:
    if isinstance(image, bytes):
        return io.BytesIO(image)
    fs, path = locate(str(image))
    return fs.open(path, "rb")


class EncodedImageText(Prompts):
    """Texts and first images encoded by what a family has for each, loaded when first needed.

    Without an image there is no condition: ``None`` alone gives the text's entries of no prompt,
    which is what guidance needs.

    Args:
        load: Returns the encoders.
        embed_text: Given them and texts, returns their entries.
        embed_image: Given them and one picture of PIL, returns its entries, of one row.
        imaged: The names of what it returns.
        prompts: The prompts to draw from; none by default.
        null: The text that stands for no prompt.
        folder: The pipeline's folder or hub name, for the encoders' fingerprint.
        how: What else embeddings depend on, for the fingerprint.

    Attributes:
        inner: What encodes the texts.
    """

    def __init__(
        self,
        load: Callable[[], Any],
        embed_text: Callable[[Any, list[str]], TensorDict],
        embed_image: Callable[[Any, Any], dict[str, Tensor]],
        *,
        imaged: Sequence[str],
        prompts: Sequence[ImagePrompt] = (),
        null: str,
        folder: str | Path = "",
        how: Mapping[str, Any] | None = None,
    ) -> None:
        self._load = functools.cache(load)
        self.inner = EncodedText(self._load, embed_text, null=null)
        self._embed_image = embed_image
        self._imaged, self._folder, self._how = tuple(imaged), folder, dict(how or {})
        self._prompts = tuple(prompts)
        self._check(self._prompts)

    @property
    def prompts(self) -> Sequence[Any]:
        """The prompts given.

        Raises:
            ValueError: If none were.
        """
        return self._prompts or self.inner.prompts  # which says what to do

    @property
    def imaged(self) -> tuple[str, ...]:
        return self._imaged

    def fingerprint(self) -> str | None:
        """Digests the files of all encoders, the VAE among them."""
        made = encoder_fingerprint(self._folder, images=True) if self._folder else None
        return own_digest({"encoder": made, **self._how}) if made else None

    @torch.no_grad()
    def encode(self, prompts: Sequence[Any]) -> TensorDict:
        """Encodes prompts; either all or none of them are ``None``."""
        if all(prompt is None for prompt in prompts):
            return self.inner.encode(prompts)
        self._check(prompts)
        pictures = [prompt.picture() for prompt in prompts]
        condition = self.inner.encode([prompt.text for prompt in prompts])
        rows = [self._embed_image(self._load(), picture) for picture in pictures]
        for key in rows[0]:
            condition[key] = torch.cat([row[key] for row in rows])
        return condition

    def _check(self, prompts: Sequence[Any]) -> None:
        for prompt in prompts:
            if not isinstance(prompt, ImagePrompt):
                raise ValueError(
                    f"a prompt is an ImagePrompt, a text with its first image, got {prompt!r}"
                )
