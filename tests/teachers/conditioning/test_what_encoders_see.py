"""What encoders see of a prompt: cleaned texts, upright images."""

import importlib.metadata
import json

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pdmd.teachers.conditioning import fingerprints
from pdmd.teachers.conditioning.image_prompts import ImagePrompt


def photograph(orientation):
    """A red pixel at the left of a green one, as a camera held otherwise stores them."""
    image = Image.new("RGB", (2, 1))
    image.putpixel((0, 0), (255, 0, 0))
    image.putpixel((1, 0), (0, 255, 0))
    turned = {
        1: None,
        3: Image.Transpose.ROTATE_180,
        6: Image.Transpose.ROTATE_90,
        8: Image.Transpose.ROTATE_270,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
    }[orientation]
    stored = image if turned is None else image.transpose(turned)
    exif = Image.Exif()
    exif[0x0112] = orientation
    return image, stored, exif


@pytest.mark.parametrize("orientation", [1, 2, 3, 6, 8])
def test_photographs_are_upright(tmp_path, orientation):
    upright, stored, exif = photograph(orientation)
    path = tmp_path / "a.png"
    stored.save(path, exif=exif)
    plain = ImagePrompt("a", upright)
    for image in (str(path), path, path.read_bytes(), Image.open(path)):
        prompt = ImagePrompt("a", image)
        assert prompt.picture().size == (2, 1)
        assert prompt.picture().tobytes() == upright.tobytes() and prompt.name == plain.name


@pytest.mark.parametrize("pipeline", ["WanPipeline", "WanImageToVideoPipeline", "FluxPipeline"])
def test_the_package_that_cleans_texts_belongs_to_the_fingerprint(tmp_path, monkeypatch, pipeline):
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    save_file({"a": torch.ones(2)}, tmp_path / "text_encoder" / "model.safetensors")
    found = {}
    for installed in ("", "6.1", "6.3"):
        monkeypatch.setattr(fingerprints, "find_spec", lambda name, v=installed: v or None)
        monkeypatch.setattr(fingerprints, "version", lambda name, v=installed: v)
        found[installed] = fingerprints.encoder_fingerprint(tmp_path)
    assert len(set(found.values())) == (3 if pipeline.startswith("Wan") else 1)


def test_a_cleaner_without_metadata_is_told_from_none(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(fingerprints, "find_spec", lambda name: object())
    monkeypatch.setattr(fingerprints, "version", missing)
    assert fingerprints._cleaner() == "ftfy"


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer.model", "vocab.txt"])
def test_what_a_tokenizer_reads_belongs_to_the_fingerprint(tmp_path, name):
    for part in ("text_encoder", "tokenizer"):
        (tmp_path / part).mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "text_encoder" / "model.safetensors")
    found = set()
    for content in ("{{ messages }}", "{{ messages }}!"):
        (tmp_path / "tokenizer" / name).write_text(content)
        found.add(fingerprints.encoder_fingerprint(tmp_path))
    assert len(found) == 2 and None not in found
