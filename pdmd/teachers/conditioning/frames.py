"""Frames of pictures and videos, read and fitted to a size."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from pdmd.extras import require
from pdmd.files import locate, say

__all__ = [
    "FORMATS",
    "VIDEOS",
    "UnusablePicture",
    "fit_frame",
    "is_video",
    "opened_picture",
    "read_frames",
    "to_pixels",
    "to_rgb",
]

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM")
"""Formats of pictures; Pillow reads others, such as PostScript, by running what they contain."""

VIDEOS = (".avi", ".mkv", ".mov", ".mp4", ".webm")
"""Suffixes of videos, which are read by ffmpeg; animated GIF, PNG and WebP are pictures."""


class UnusablePicture(ValueError):
    """A picture is there and cannot be used as it is."""


def is_video(source: Any) -> bool:
    """Returns whether a source is the path or URL of a video, by its suffix."""
    path = str(source) if isinstance(source, str | Path) else ""
    return PurePosixPath(path).suffix.lower() in VIDEOS


def read_frames(source: Any, number: int) -> list[Any]:
    """Reads the first frames of a video or an animated picture.

    Args:
        source: The path or URL of a file, its bytes, or a picture of PIL.
        number: How many frames.

    Returns:
        RGB pictures of PIL, those of a picture file as :func:`to_rgb` returns them.

    Raises:
        ValueError: If it cannot be read, or has fewer frames.
    """
    require("diffusers", "PIL")
    from PIL import Image, ImageSequence

    called = source if isinstance(source, str | Path) else "a picture"
    try:
        if is_video(source):
            frames = _decoded(str(source), number)
        elif isinstance(source, Image.Image):
            frames = [to_rgb(source)]
        else:
            with opened_picture(source) as opened:
                each = itertools.islice(ImageSequence.Iterator(opened), number)
                frames = [to_rgb(frame) for frame in each]
    except UnusablePicture as error:
        raise ValueError(f"cannot read the frames of {called} ({error})") from error
    except Exception as error:  # file systems and decoders raise any class
        raise ValueError(f"cannot read the frames of {called} ({say(error)})") from error
    if len(frames) < number:
        raise ValueError(
            f"{called} has {len(frames)} frames, and samples have {number}; give longer videos, "
            "or the teacher fewer frames"
        )
    return frames


@contextlib.contextmanager
def opened_picture(source: str | Path | bytes) -> Iterator[Any]:
    """Opens a file of a picture, in one of :data:`FORMATS`.

    Args:
        source: Its path or URL, or its bytes.

    Yields:
        The picture of PIL.

    Raises:
        UnusablePicture: If it is of another format.
    """
    from PIL import Image, UnidentifiedImageError

    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    with contextlib.ExitStack() as stack:
        if isinstance(source, bytes):
            file: Any = io.BytesIO(source)
        else:
            fs, path = locate(str(source))
            file = stack.enter_context(fs.open(path, "rb"))
        try:
            opened = stack.enter_context(Image.open(file, formats=formats))
        except UnidentifiedImageError as error:
            raise UnusablePicture(f"it is none of {', '.join(formats)}") from error
        yield opened


def to_rgb(picture: Any) -> Any:
    """Returns a picture of PIL in RGB, rotated by its EXIF orientation.

    Args:
        picture: The picture.

    Raises:
        UnusablePicture: If its channels have more than 8 bits, which Pillow clips to white.
    """
    from PIL import ImageOps

    if picture.mode[0] in "IF":
        raise UnusablePicture(
            f"its pixels are of mode {picture.mode}, with more than 8 bits, which would be "
            "clipped; save it with 8 bits a channel"
        )
    return ImageOps.exif_transpose(picture).convert("RGB")


def fit_frame(frame: Any, height: int, width: int) -> Any:
    """Scales a picture to cover a size, and crops its centre.

    Args:
        frame: The picture of PIL.
        height: Height in pixels.
        width: Width in pixels.
    """
    from PIL import Image, ImageOps

    return ImageOps.fit(frame, (width, height), Image.Resampling.LANCZOS)


def to_pixels(frame: Any) -> Tensor:
    """Returns the pixels of a picture of PIL in [0, 1], with shape :math:`(3, H, W)`."""
    data = torch.frombuffer(bytearray(frame.tobytes()), dtype=torch.uint8)
    return data.view(frame.height, frame.width, 3).permute(2, 0, 1).float() / 255


def _decoded(source: str, number: int) -> list[Any]:
    require("video", "imageio", "imageio_ffmpeg", alternative="give animated pictures (.gif)")
    import imageio.v2 as imageio
    from PIL import Image

    fs, path = locate(source)
    suffix = PurePosixPath(source).suffix
    make: Any = imageio.get_reader
    with make(fs.cat_file(path), format=suffix, mode="I") as reader:
        return [Image.fromarray(frame) for frame in itertools.islice(reader.iter_data(), number)]
