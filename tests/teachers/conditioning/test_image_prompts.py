"""Prompts of a text and a first image."""

import numpy
import pytest
import torch
from tensordict import TensorDict

from pdmd.teachers import (
    ImagePrompt,
)
from pdmd.teachers.conditioning.frames import read_frames
from pdmd.teachers.conditioning.image_prompts import EncodedImageText
from pdmd.teachers.conditioning.prompt_files import read_image_prompts
from tests.helpers.tiny_encoders import picture


def test_an_image_is_a_path_a_picture_or_a_tensor(tmp_path):
    image = picture(0)
    image.save(tmp_path / "0.png")
    levels = torch.tensor(list(image.tobytes()), dtype=torch.uint8).reshape(12, 20, 3)
    tensor = levels.permute(2, 0, 1) / 255
    for given in (image, tmp_path / "0.png", str(tmp_path / "0.png"), tensor):
        assert ImagePrompt("a cat", given).picture().tobytes() == image.tobytes()
    grey = ImagePrompt("a cat", image.convert("L")).picture()
    assert grey.mode == "RGB"
    assert ImagePrompt("a cat", "0.png") == ImagePrompt("a cat", "0.png")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("nowhere.png", "cannot read the image nowhere.png"),
        (
            torch.zeros(4, 8, 8),
            r"with shape \(3, H, W\) in \[0, 1\], got torch.float32 of shape \(4, 8, 8",
        ),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), "got torch.uint8"),
        (torch.full((3, 2, 2), 255.0), r"values of an image must be in \[0, 1\], got 255 to 255"),
        (
            torch.full((3, 2, 2), torch.nan),
            r"must be in \[0, 1\], got nan to nan",
        ),
        (7, "a path, a PIL image or a tensor, got a int"),
    ],
)
def test_what_is_no_image_is_named(image, message):
    with pytest.raises(ValueError, match=message):
        ImagePrompt("a cat", image).picture()


def test_a_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(ValueError, match=r"cannot read the image .*a.png"):
        ImagePrompt("a cat", tmp_path / "a.png").picture()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no prompts"),
        ('{"text": "a cat", "image": "0.png"}\n{"text": "a dog"}', "row 2 of .* has no image in"),
        ('{"text": "a cat", "image": ""}', "row 1 of .* has no image in 'image'"),
        ('{"text": "a cat", "image": 5}', "row 1 of .* has no image in 'image'"),
        ('{"image": "0.png"}', "row 1 of .* has neither 'prompt' nor 'text' but 'image'"),
        ("a cat", "line 1 of .* is not a JSON object"),
        ('{"text": 3, "image": "0.png"}', "prompt 1 of .* must be a text, got 3"),
        ('["a cat", "0.png"]', "line 1 of .* is not a JSON object"),
    ],
)
def test_a_file_of_prompts_names_its_bad_line(tmp_path, text, message):
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_image_prompts(str(path))
    with pytest.raises(ValueError, match="does not exist"):
        read_image_prompts(str(tmp_path / "nowhere.jsonl"))
    (tmp_path / "prompts.txt").write_text("a cat\n")
    with pytest.raises(ValueError, match="has no images, and the prompts of this teacher need"):
        read_image_prompts(str(tmp_path / "prompts.txt"))


def counted():
    calls = []

    def load():
        calls.append("load")
        return "encoders"

    def embed_text(encoders, texts):
        prompt = torch.tensor([[[float(len(text))]] for text in texts])
        return TensorDict({"prompt": prompt}, batch_size=[len(texts)])

    def embed_image(encoders, image):
        return {"first": torch.full((1, 2), float(image.width))}

    return calls, EncodedImageText(
        load, embed_text, embed_image, image_keys=["first"], null="none"
    )


def test_texts_and_images_are_encoded_row_by_row_by_encoders_loaded_once():
    calls, encoded = counted()
    assert not calls
    prompts = [ImagePrompt("a", picture(0, 5)), ImagePrompt("abc", picture(0, 7))]
    condition = encoded.encode(prompts)
    assert condition["prompt"].flatten().tolist() == [1, 3]
    assert condition["first"][:, 0].tolist() == [5, 7]
    assert encoded.encode([None])["prompt"].item() == 4 and calls == ["load"]


@pytest.mark.parametrize("prompts", [["a cat"], [None, ImagePrompt("a cat", "0.png")]])
def test_what_is_no_prompt_with_an_image_is_named(prompts):
    _, encoded = counted()
    with pytest.raises(ValueError, match="a prompt must be an ImagePrompt"):
        encoded.encode(prompts)
    with pytest.raises(ValueError, match="the teacher has no prompts; pass prompts="):
        _ = encoded.prompts


@pytest.mark.parametrize(
    ("read", "what"),
    [
        (lambda p: ImagePrompt("a cat", p).picture(), "image"),
        (lambda p: read_frames(p, 1), "frames"),
    ],
)
def test_only_formats_of_pictures_are_opened(tmp_path, read, what):
    program = tmp_path / "0.png"
    picture(0).save(program, "EPS")  # which Pillow would run in Ghostscript
    with pytest.raises(ValueError, match=rf"{what} .*0.png \(it is none of PNG, JPEG, "):
        read(program)


@pytest.mark.parametrize(("dtype", "suffix"), [("uint16", "png"), ("float32", "tiff")])
def test_pictures_of_more_than_8_bits_are_rejected(tmp_path, dtype, suffix):
    """Pillow clips them to white."""
    from PIL import Image

    levels = numpy.linspace(0, 65535, 64).reshape(8, 8).astype(dtype)
    deep, path = Image.fromarray(levels), tmp_path / f"0.{suffix}"
    deep.save(path)
    for given in (path, path.read_bytes(), deep):
        with pytest.raises(ValueError, match=r"cannot read the image .* with more than 8 bits"):
            ImagePrompt("a cat", given).picture()
    with pytest.raises(ValueError, match=r"cannot read the frames of .* of mode [IF]"):
        read_frames(path, 1)
    Image.fromarray((levels / 257).astype("uint8")).save(tmp_path / "1.png")
    assert ImagePrompt("a cat", tmp_path / "1.png").picture().getpixel((7, 7)) == (255, 255, 255)
