"""Samples as picture files: one file per sample, or a grid.

Pictures are images of shape :math:`(B, C, H, W)` or videos of shape :math:`(B, C, F, H, W)`, with
one or three channels in [0, 1]. Values are rounded to bytes, which PNG stores
losslessly; H.264 and GIF, for videos, are lossy. A PNG grid shows the first, middle and last frame
of a video.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pdmd.documents import read_json
from pdmd.extras import require
from pdmd.files import local_path, telling, write_file

__all__ = [
    "GridWriter",
    "ImageGrid",
    "FolderWriter",
    "SampleWriter",
    "caption",
    "sample_writer",
    "to_uint8",
]

GAP = 2
SMALLEST = 64
"""Minimum size of a picture in a grid, in pixels; smaller ones are scaled by an integer."""
CAPTIONED = 16
"""Maximum number of pictures in a grid with captions."""
LISTING = "prompts.json"
"""The list of the samples in a folder."""


def to_uint8(pictures: Tensor) -> np.ndarray:
    """Converts pictures to RGB bytes.

    Args:
        pictures: Images or videos in [0, 1]; values outside are clamped.

    Returns:
        An array of shape :math:`(B, H, W, 3)` or :math:`(B, F, H, W, 3)`.

    Raises:
        ValueError: If they are neither images nor videos, or not finite.
    """
    if pictures.ndim not in (4, 5) or pictures.shape[1] not in (1, 3):
        raise ValueError(
            "pictures have shape (B, C, H, W) or (B, C, F, H, W) with 1 or 3 channels, got "
            f"{tuple(pictures.shape)}"
        )
    if not bool(pictures.isfinite().all()):
        raise ValueError(
            f"pictures are not finite in {str(pictures.dtype).removeprefix('torch.')}, and would "
            "be black; decode in another type, and look at the samples"
        )
    levels = (255 * pictures.detach().float().clamp(0, 1)).round().to(torch.uint8).cpu()
    if levels.shape[1] == 1:
        levels = levels.expand(-1, 3, *levels.shape[2:])
    return levels.movedim(1, -1).contiguous().numpy()


def caption(prompt: Any) -> str:
    """Returns the text of a prompt, which is empty for ``None``."""
    return "" if prompt is None else str(getattr(prompt, "text", prompt))


class SampleWriter(ABC):
    """Writes pictures as they are sampled."""

    @abstractmethod
    def add(self, pictures: Tensor, prompts: Sequence[Any]) -> None:
        """Adds a batch of pictures with their prompts."""

    @abstractmethod
    def close(self) -> None:
        """Writes the remaining files."""


class FolderWriter(SampleWriter):
    """Writes one file per picture, ``0000.png`` or ``0000.mp4``, and ``prompts.json``.

    The samples that an earlier ``prompts.json`` lists are replaced; the folder must contain
    nothing else. Each batch is listed before its pictures are written, so that an interrupted call
    may be run again.

    Args:
        folder: The folder.
        fps: Frames per second of videos.

    Raises:
        ValueError: If the folder contains other files, or is a file.
    """

    def __init__(self, folder: Path, *, fps: float) -> None:
        self.folder, self.fps = folder, fps
        self.listed: list[dict[str, Any]] = []
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is a file; choose another --out")
        self.earlier = _listed(folder / LISTING)
        for path in sorted(folder.glob("*")):
            if path.name not in self.earlier:
                raise ValueError(
                    f"{folder} contains {path.name}, which no earlier sample lists; choose "
                    "another --out"
                )

    def add(self, pictures: Tensor, prompts: Sequence[Any]) -> None:
        require("report", "PIL")
        from PIL import Image

        if not self.listed:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in self.earlier - {LISTING}:
                (self.folder / name).unlink(missing_ok=True)
        levels = to_uint8(pictures)
        suffix, first = "png" if levels.ndim == 4 else "mp4", len(self.listed)
        names = [f"{first + i:04}.{suffix}" for i in range(len(levels))]
        self.listed += [
            {"file": name, "prompt": caption(prompt)}
            for name, prompt in zip(names, prompts, strict=True)
        ]
        self.close()
        for name, picture in zip(names, levels, strict=True):
            with telling(str(self.folder / name), "the sample could not be written"):
                if picture.ndim == 3:
                    Image.fromarray(picture).save(self.folder / name)
                else:
                    _write_mp4(self.folder / name, picture, self.fps)

    def close(self) -> None:
        text = json.dumps(self.listed, indent=1, ensure_ascii=False)
        write_file(self.folder / LISTING, f"{text}\n".encode("utf-8", "replace"))


class GridWriter(SampleWriter):
    """Writes all pictures to one file as a grid: ``.png``, or ``.mp4`` or ``.gif`` for videos.

    Args:
        path: The file.
        fps: Frames per second of videos.
    """

    def __init__(self, path: Path, *, fps: float) -> None:
        self.path, self.fps = path, fps
        self.parts: list[np.ndarray] = []
        self.captions: list[str] = []

    def add(self, pictures: Tensor, prompts: Sequence[Any]) -> None:
        frames = to_uint8(pictures)
        if frames.ndim == 5 and self.path.suffix == ".png":
            frames = _strips(frames)
        self.parts.append(frames)
        self.captions += [caption(prompt) for prompt in prompts]

    def close(self) -> None:
        require("report", "PIL")
        from PIL import Image

        self.path.parent.mkdir(parents=True, exist_ok=True)
        pictures = np.concatenate(self.parts)
        grid = ImageGrid(len(pictures), *pictures.shape[-3:-1], captions=self.captions)
        with telling(str(self.path), "the samples could not be written"):
            if pictures.ndim == 4:
                Image.fromarray(grid.draw(pictures)).save(self.path)
                return
            frames = (grid.draw(pictures[:, i]) for i in range(pictures.shape[1]))
            if self.path.suffix == ".mp4":
                _write_mp4(self.path, frames, self.fps)
                return
            first, *rest = (Image.fromarray(frame) for frame in frames)
            length = 1000 / self.fps
            first.save(self.path, save_all=True, append_images=rest, duration=length, loop=0)


class ImageGrid:
    """The layout of a grid of equal-sized pictures, with captions if they are few.

    Args:
        number: The number of pictures.
        height: The height of a picture, in pixels.
        width: The width of a picture, in pixels.
        captions: The text of each picture.
    """

    def __init__(self, number: int, height: int, width: int, *, captions: Sequence[str]) -> None:
        self.scale = max(1, math.ceil(SMALLEST / min(height, width)))
        self.height, self.width = self.scale * height, self.scale * width
        self.columns = number if number <= 4 else math.ceil(math.sqrt(number))
        self.rows = math.ceil(number / self.columns)
        self.texts: list[list[str]] = []
        self.size = min(24, max(10, self.width // 20))
        self.font: Any = None
        if number <= CAPTIONED and any(captions):
            self.font = _font(self.size)
            self.texts = [self._wrapped(caption) for caption in captions]
        lines = max(map(len, self.texts), default=0)
        self.line = math.ceil(1.3 * self.size)
        self.step = self.height + GAP + (lines * self.line + GAP if lines else 0)

    def position(self, i: int) -> tuple[int, int]:
        """Returns the top and left pixel of a picture."""
        row, column = divmod(i, self.columns)
        return GAP + row * self.step, GAP + column * (self.width + GAP)

    def draw(self, pictures: np.ndarray) -> np.ndarray:
        """Draws pictures of shape :math:`(B, H, W, 3)` into one of shape :math:`(H', W', 3)`."""
        require("report", "PIL")
        from PIL import Image, ImageDraw

        shape = (GAP + self.rows * self.step, GAP + self.columns * (self.width + GAP), 3)
        canvas = np.full(shape, 255, np.uint8)
        for i, picture in enumerate(pictures):
            top, left = self.position(i)
            enlarged = picture.repeat(self.scale, 0).repeat(self.scale, 1)
            canvas[top : top + self.height, left : left + self.width] = enlarged
        if not self.texts:
            return canvas
        image = Image.fromarray(canvas)
        pen = ImageDraw.Draw(image)
        for i, lines in enumerate(self.texts):
            top, left = self.position(i)
            for j, line in enumerate(lines):
                at = (left + GAP, top + self.height + GAP + j * self.line)
                pen.text(at, line, fill=(40, 40, 40), font=self.font)
        return np.asarray(image)

    def _wrapped(self, caption: str, most: int = 3) -> list[str]:
        """Wraps a caption to the width of a picture and truncates it."""
        lines: list[str] = []
        rest = " ".join(caption.split())
        while rest and len(lines) < most:
            n = len(rest)
            while n > 1 and self.font.getlength(rest[:n]) > self.width - 2 * GAP:
                space = rest.rfind(" ", 0, n)
                n = space if space > 0 else n - 1
            lines.append(rest[:n])
            rest = rest[n:].strip()
        if rest and lines:
            last = lines[-1]
            while last and self.font.getlength(last + "…") > self.width - 2 * GAP:
                last = last[:-1]
            lines[-1] = last + "…"
        return lines


def sample_writer(out: str, *, video: bool | None = None, fps: float = 16.0) -> SampleWriter:
    """Returns the writer for a path.

    Args:
        out: A folder, for one file per picture, or the file of a grid: ``.png``, or ``.mp4`` and
            ``.gif`` for videos.
        video: Whether the pictures are videos, if known.
        fps: Frames per second of videos.

    Raises:
        ValueError: If the suffix is not supported, or a package is not installed.
    """
    path = local_path(out, "samples")
    folder = not path.suffix or out.endswith("/") or path.is_dir()
    if not folder and path.suffix not in (".png", ".mp4", ".gif"):
        raise ValueError(
            f"--out must be a folder or end in .png, .mp4, .gif or .safetensors, got {out!r}"
        )
    if path.suffix in (".mp4", ".gif") and not folder and video is False:
        raise ValueError(f"this student samples images, not videos; use .png instead of {out!r}")
    if not 0 < fps <= 1000:
        raise ValueError(f"--fps must be above 0 and at most 1000, got {fps:g}")
    if video and (folder or path.suffix == ".mp4"):
        _video_writer()
    latents = "write latents by --out samples.safetensors"
    require("report", "matplotlib", "PIL", alternative=latents)
    return FolderWriter(path, fps=fps) if folder else GridWriter(path, fps=fps)


def _listed(path: Path) -> set[str]:
    """Returns the files of earlier samples, their list included; none if there is no such list."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        entries = read_json(path)
        names = {entry["file"] for entry in entries if set(entry) == {"file", "prompt"}}
        if all(re.fullmatch(r"\d{4,}\.(png|mp4)", name) for name in names):
            return {LISTING, *names} if len(names) == len(entries) > 0 else set()
    return set()


def _strips(videos: np.ndarray) -> np.ndarray:
    """Puts the first, middle and last frame of each video side by side."""
    last = videos.shape[1] - 1
    chosen = sorted({0, last // 2, last})
    gap = np.full((len(videos), videos.shape[2], 1, 3), 255, np.uint8)
    parts: list[np.ndarray] = []
    for i in chosen:
        parts += [videos[:, i], gap]
    return np.concatenate(parts[:-1], 2)


def _video_writer() -> Any:
    require("video", "imageio", "imageio_ffmpeg", alternative="use --out samples.gif")
    import imageio.v2 as imageio
    import imageio_ffmpeg  # noqa: F401  (a plugin of imageio)

    return imageio.get_writer


def _write_mp4(path: Path, frames: Sequence[Any] | Iterator[Any] | np.ndarray, fps: float) -> None:
    """Writes frames as H.264; odd sizes are padded to even by repeating the last row or column."""
    writer = _video_writer()(
        path,
        format="FFMPEG",
        fps=fps,
        codec="libx264",
        quality=8,
        macro_block_size=1,
        ffmpeg_log_level="error",
    )
    with writer:
        for frame in frames:
            height, width, _ = frame.shape
            odd = ((0, height % 2), (0, width % 2), (0, 0))
            writer.append_data(np.pad(frame, odd, mode="edge"))


def _font(size: int) -> Any:
    require("report", "matplotlib", "PIL")
    from matplotlib import get_data_path
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)
