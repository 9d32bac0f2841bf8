"""Prompts of a text and a first image, for families that go on from an image."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pdmd.teachers.prompts import EncodedText, Prompts

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = ["EncodedImageText", "ImagePrompt", "read_image_prompts"]


@dataclass(frozen=True)
class ImagePrompt:
    """A text and the image that its video begins with.

    Attributes:
        text: The text.
        image: A file's path, an image of PIL, or a tensor of shape :math:`(3, H, W)` in [0, 1],
            which is rounded to 8 bits as files are. It is stretched to the video's size.
    """

    text: str
    image: Any

    def picture(self) -> Any:
        """Returns the image as PIL's, in colours.

        Raises:
            ValueError: If it cannot be read or is none.
        """
        from PIL import Image, UnidentifiedImageError

        image = self.image
        if isinstance(image, str | Path):
            try:
                with Image.open(image) as opened:
                    return opened.convert("RGB")
            except (OSError, UnidentifiedImageError) as error:
                raise ValueError(f"cannot read the image {image} ({error})") from error
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
            return image.convert("RGB")
        raise ValueError(
            f"an image is a path, an image of PIL or a tensor, got a {type(image).__name__}"
        )


class EncodedImageText(Prompts):
    """Texts and first images encoded by what a family has for each, loaded when first needed.

    Without an image there is no condition: ``None`` alone gives the text's entries of no prompt,
    which is what guidance needs.

    Args:
        load: Returns the encoders.
        embed_text: Given them and texts, returns their entries.
        embed_image: Given them and one picture of PIL, returns its entries, of one row.
        prompts: The prompts to draw from; none by default.
        null: The text that stands for no prompt.
    """

    def __init__(
        self,
        load: Callable[[], Any],
        embed_text: Callable[[Any, list[str]], TensorDict],
        embed_image: Callable[[Any, Any], dict[str, Tensor]],
        *,
        prompts: Sequence[ImagePrompt] = (),
        null: str,
    ) -> None:
        self._load = functools.cache(load)
        self._text = EncodedText(self._load, embed_text, null=null)
        self._embed_image = embed_image
        self._prompts = tuple(prompts)
        self._check(self._prompts)

    @property
    def prompts(self) -> Sequence[Any]:
        """The prompts given.

        Raises:
            ValueError: If none were.
        """
        return self._prompts or self._text.prompts  # which says what to do

    @torch.no_grad()
    def encode(self, prompts: Sequence[Any]) -> TensorDict:
        """Encodes prompts; either all or none of them are ``None``."""
        if all(prompt is None for prompt in prompts):
            return self._text.encode(prompts)
        self._check(prompts)
        pictures = [prompt.picture() for prompt in prompts]
        condition = self._text.encode([prompt.text for prompt in prompts])
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


def read_image_prompts(path: str | Path) -> list[ImagePrompt]:
    """Reads a file of one prompt per line, each a JSON object with ``text`` and ``image``.

    Args:
        path: The file; images are looked for beside it.

    Raises:
        ValueError: If it is missing or holds none, or a line is not one.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"the file of prompts {path} does not exist")
    prompts = []
    for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            prompt = ImagePrompt(entry["text"], str(path.parent / entry["image"]))
            if not isinstance(prompt.text, str):
                raise TypeError("text is no string")
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"line {i} of {path} is no prompt with an image ({error!r}); write "
                '{"text": "...", "image": "file.png"}'
            ) from error
        prompts.append(prompt)
    if not prompts:
        raise ValueError(f"{path} holds no prompts; write one per line")
    return prompts
