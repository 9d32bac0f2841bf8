"""Frames of pictures and videos, read and fitted to a size."""

from __future__ import annotations

import itertools
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from pdmd.extras import require
from pdmd.files import locate, say

__all__ = ["VIDEOS", "fit_frame", "is_video", "read_frames", "to_pixels"]

VIDEOS = (".avi", ".mkv", ".mov", ".mp4", ".webm")
"""Suffixes of videos, which are read by ffmpeg; animated GIF, PNG and WebP are pictures."""


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
        RGB pictures of PIL. Colours of a picture file are rotated by its EXIF orientation.

    Raises:
        ValueError: If it cannot be read, or has fewer frames.
    """
    require("diffusers", "PIL")
    from PIL import Image, ImageOps, ImageSequence

    called = source if isinstance(source, str | Path) else "a picture"
    try:
        if is_video(source):
            frames = _decoded(str(source), number)
        elif isinstance(source, Image.Image):
            frames = [ImageOps.exif_transpose(source).convert("RGB")]
        else:
            with _opened(source) as file, Image.open(file) as opened:
                each = itertools.islice(ImageSequence.Iterator(opened), number)
                frames = [ImageOps.exif_transpose(frame).convert("RGB") for frame in each]
    except Exception as error:  # file systems and decoders raise any class
        raise ValueError(f"cannot read the frames of {called} ({say(error)})") from error
    if len(frames) < number:
        raise ValueError(
            f"{called} has {len(frames)} frames, and samples have {number}; give longer videos, "
            "or the teacher fewer frames"
        )
    return frames


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


def _opened(source: Any) -> Any:
    import io

    if isinstance(source, bytes):
        return io.BytesIO(source)
    fs, path = locate(str(source))
    return fs.open(path, "rb")


def _decoded(source: str, number: int) -> list[Any]:
    require("video", "imageio", "imageio_ffmpeg", alternative="give animated pictures (.gif)")
    import imageio.v2 as imageio
    from PIL import Image

    fs, path = locate(source)
    suffix = PurePosixPath(source).suffix
    make: Any = imageio.get_reader
    with make(fs.cat_file(path), format=suffix, mode="I") as reader:
        return [Image.fromarray(frame) for frame in itertools.islice(reader.iter_data(), number)]
