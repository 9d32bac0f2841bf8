"""Picture files contain the decoded samples."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from pdmd.evaluation.pictures import ImageGrid, sample_writer, to_uint8

IMAGES = torch.rand(5, 3, 10, 14, generator=torch.Generator().manual_seed(0))
VIDEOS = torch.rand(3, 3, 5, 32, 48, generator=torch.Generator().manual_seed(1))


def write(out, pictures, prompts, *, parts=2, **more):
    writer = sample_writer(str(out), video=pictures.ndim == 5, **more)
    for i in range(0, len(pictures), parts):
        writer.add(pictures[i : i + parts], prompts[i : i + parts])
    writer.close()


def bytes_of(pictures):
    return (255 * pictures.double() + 0.5).floor().to(torch.uint8).movedim(1, -1).numpy()


def test_a_folder_contains_every_picture_losslessly(tmp_path):
    prompts = ["a cat", "猫", None, 3, "last"]
    write(tmp_path / "samples", IMAGES, prompts)
    for i, expected in enumerate(bytes_of(IMAGES)):
        found = np.asarray(Image.open(tmp_path / "samples" / f"000{i}.png"))
        assert np.array_equal(found, expected)
    listed = json.loads((tmp_path / "samples" / "prompts.json").read_text())
    texts = ["a cat", "猫", "", "3", "last"]
    assert listed == [{"file": f"000{i}.png", "prompt": t} for i, t in enumerate(texts)]
    write(tmp_path / "samples", IMAGES[:2], prompts[:2])  # replaces
    assert len(list((tmp_path / "samples").iterdir())) == 3
    grey = torch.rand(1, 1, 8, 8)
    assert np.array_equal(to_uint8(grey)[..., 1], bytes_of(grey)[..., 0])


@pytest.mark.parametrize(
    "listing", ["", "[]", '["a cat"]', "[3]", "{", '[{"file": "../x", "prompt": ""}]']
)
def test_files_that_no_sample_lists_are_never_replaced(tmp_path, listing):
    (tmp_path / "prompts.json").write_text(listing)
    with pytest.raises(ValueError, match="prompts.json, which no earlier sample lists"):
        sample_writer(str(tmp_path))
    (tmp_path / "prompts.json").unlink()
    (tmp_path / "0000.png").write_bytes(b"mine")
    with pytest.raises(ValueError, match="0000.png, which no earlier sample lists"):
        sample_writer(str(tmp_path))
    assert (tmp_path / "0000.png").read_bytes() == b"mine"


def test_an_interrupted_sample_may_be_written_again(tmp_path, monkeypatch):
    save = Image.Image.save

    def interrupted(self, path, **more):
        if path.name == "0003.png":
            raise KeyboardInterrupt
        save(self, path, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, IMAGES, ["a"] * 5)
    assert (tmp_path / "0002.png").exists()
    write(tmp_path, IMAGES[:1], ["a"])
    assert {path.name for path in tmp_path.iterdir()} == {"0000.png", "prompts.json"}


@pytest.mark.parametrize("number", [1, 4, 5, 20])
def test_a_grid_contains_every_picture_scaled(tmp_path, number):
    pictures = IMAGES.repeat(4, 1, 1, 1)[:number]
    write(tmp_path / "grid.png", pictures, [f"prompt {i}" for i in range(number)], parts=3)
    found = np.asarray(Image.open(tmp_path / "grid.png"))
    texts = [f"prompt {i}" for i in range(number)]
    grid = ImageGrid(number, 10, 14, captions=texts)
    assert grid.scale == 7
    for i, expected in enumerate(bytes_of(pictures)):
        top, left = grid.position(i)
        tile = found[top : top + grid.height, left : left + grid.width]
        assert np.array_equal(tile[::7, ::7], expected) and np.array_equal(
            tile[6::7, 6::7], expected
        )
        below = found[top + grid.height : top + grid.step, left : left + grid.width]
        assert (below.min() < 100) == (number <= 16)  # captions, if few
    assert found.shape[:2] == (
        2 + grid.rows * grid.step,
        2 + grid.columns * (grid.width + 2),
    )


def test_captions_are_wrapped_to_their_picture():
    long = "a very long prompt that goes on and on " * 6
    grid = ImageGrid(2, 64, 160, captions=[long, "Donaudampfschifffahrtsgesellschaft" * 2])
    for lines, text in zip(
        grid.texts, (long, "Donaudampfschifffahrtsgesellschaft" * 2), strict=True
    ):
        assert 1 < len(lines) <= 3
        assert all(grid.font.getlength(line) <= 156 for line in lines)
        joined = "".join(lines).rstrip("…").replace(" ", "")
        assert text.replace(" ", "").startswith(joined)
    assert grid.texts[0][-1].endswith("…")


def test_videos_keep_frames_and_size(tmp_path):
    iio = pytest.importorskip("imageio.v3")
    smooth = torch.nn.functional.interpolate(VIDEOS, size=(5, 4, 4)).repeat_interleave(8, 3)
    smooth = smooth.repeat_interleave(12, 4)
    write(tmp_path / "each", smooth, ["a", "b", "c"], fps=8)
    for i in range(3):
        frames = iio.imread(tmp_path / "each" / f"000{i}.mp4")
        assert frames.shape == (5, 32, 48, 3)
        assert iio.immeta(tmp_path / "each" / f"000{i}.mp4")["fps"] == 8
        expected = bytes_of(smooth[i : i + 1])[0].astype(int)
        centre = (slice(None), slice(4, None, 8), slice(6, None, 12))  # away from edges' colours
        assert np.abs(frames[centre].mean(-1) - expected[centre].mean(-1)).mean() < 8
    write(tmp_path / "grid.mp4", smooth, ["a", "b", "c"])
    grid = ImageGrid(3, 32, 48, captions=["a", "b", "c"])
    frames = iio.imread(tmp_path / "grid.mp4")
    height, width = 2 + grid.step, 2 + 3 * (96 + 2)
    assert frames.shape == (5, height + height % 2, width + width % 2, 3)
    write(tmp_path / "grid.gif", smooth, ["a", "b", "c"], fps=10)
    with Image.open(tmp_path / "grid.gif") as opened:
        assert (opened.n_frames, opened.size, opened.info["duration"]) == (5, (width, height), 100)
    write(tmp_path / "odd.mp4", torch.rand(1, 3, 4, 65, 65), [""])
    assert iio.imread(tmp_path / "odd.mp4").shape == (4, 70, 70, 3)  # 65, gaps and an even end


def test_a_png_grid_of_videos_shows_first_middle_and_last_frame(tmp_path):
    write(tmp_path / "stills.png", VIDEOS, ["a", "b", "c"])
    found = np.asarray(Image.open(tmp_path / "stills.png"))
    grid = ImageGrid(3, 32, 3 * 48 + 2, captions=["a", "b", "c"])
    for i, video in enumerate(bytes_of(VIDEOS)):
        top, left = grid.position(i)
        tile = found[top : top + grid.height : grid.scale, left : left + grid.width : grid.scale]
        for j, frame in enumerate((0, 2, 4)):
            assert np.array_equal(tile[:, j * 49 : j * 49 + 48], video[frame])


@pytest.mark.parametrize(
    ("out", "video", "named"),
    [
        ("x.jpg", False, "end in .png, .mp4, .gif or .safetensors, got '.*x.jpg'"),
        ("x.mp4", False, "samples images, not videos; use .png"),
        ("x.gif", False, "samples images, not videos; use .png"),
        ("taken", False, "taken is a file"),
        ("full", False, "full contains notes.txt, which no earlier sample lists"),
    ],
)
def test_invalid_destinations_raise(tmp_path, out, video, named):
    (tmp_path / "taken").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=named):
        sample_writer(str(tmp_path / out), video=video)


def test_invalid_pictures_and_missing_packages_raise(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"--fps must be above 0 and at most 1000, got 0"):
        sample_writer("x.png", fps=0)
    for shape in ((2, 4, 8, 8), (3, 8, 8)):
        with pytest.raises(ValueError, match="1 or 3 channels, got"):
            to_uint8(torch.zeros(shape))
    for value in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="not finite in float16, and would be black"):
            to_uint8(torch.full((2, 1, 8, 8), value, dtype=torch.float16))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    for out in ("x.mp4", "folder/"):
        with pytest.raises(ValueError, match=r"pip install 'pdmd\[video\]'"):
            sample_writer(str(tmp_path / out), video=True)
    sample_writer(str(tmp_path / "x.gif"), video=True)
