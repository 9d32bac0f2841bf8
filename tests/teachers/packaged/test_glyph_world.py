"""The glyph world, and the classifier that evaluates it."""

from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pdmd.evaluation.glyph_classifier import GlyphClassifier, train_glyph_classifier
from pdmd.teachers.packaged.glyph_world import (
    CHARACTERS,
    FACES,
    NAMES,
    SIDE,
    GlyphBank,
    render_masks,
)


@pytest.fixture(scope="module")
def bank():
    return GlyphBank(2, seed=11)  # a seed that no training uses


def test_a_prompt_is_the_name_of_a_character_and_has_every_face(bank):
    assert len(CHARACTERS) == len(set(NAMES)) == 46 and len(FACES) == 12
    assert NAMES[CHARACTERS.index("A")] == "LATIN CAPITAL LETTER A"
    assert bank.masks.shape == (46, 12, 2, SIDE, SIDE)
    shapes = bank.masks.float().mean(2)  # the faces of a prompt differ
    for character in shapes:
        distance = torch.cdist(character.flatten(1), character.flatten(1))
        assert distance.fill_diagonal_(torch.inf).min() > 100


def test_every_glyph_is_inside_its_image(bank):
    ink = bank.masks > 127
    edges = (ink[..., 0, :], ink[..., -1, :], ink[..., 0], ink[..., -1])
    assert all(edge.float().mean() < 0.01 for edge in edges)
    assert (0.02 < ink.float().mean((-1, -2))).all()  # and none is missing


def test_rendering_and_sampling_are_reproducible(bank):
    assert torch.equal(render_masks(2, seed=11), bank.masks)
    one, other = (bank.draw(64, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one.pictures, other.pictures) and torch.equal(one.face, other.face)
    characters = torch.arange(46)
    assert torch.equal(bank.draw(46, torch.Generator(), characters).character, characters)


def test_samples_are_uniform_in_faces_on_a_white_background(bank):
    glyphs = bank.draw(6000, torch.Generator().manual_seed(0))
    share = torch.bincount(glyphs.face, minlength=12) / len(glyphs)
    assert torch.allclose(share, torch.full((12,), 1 / 12), atol=0.02)
    assert 0 <= glyphs.pictures.min() and glyphs.pictures.max() == 1
    assert (glyphs.pictures[:, :, 0, 0] == 1).all(1).float().mean() > 0.99


def test_the_packaged_classifier_generalises_to_unseen_images(bank):
    classifier = GlyphClassifier.from_package()
    glyphs = bank.draw(2000, torch.Generator().manual_seed(1))
    character, face = classifier(classifier.features(glyphs.pictures))
    assert (character.argmax(1) == glyphs.character).float().mean() > 0.98
    assert (face.argmax(1) == glyphs.face).float().mean() > 0.95


def test_training_of_the_classifier_is_reproducible(tmp_path):
    classifier = train_glyph_classifier(updates=2, variants=1, progress=False)
    again = train_glyph_classifier(updates=2, variants=1, progress=False)
    for one, other in zip(classifier.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other) and not one.requires_grad
    classifier.save(tmp_path / "classifier.safetensors")
    state = load_file(tmp_path / "classifier.safetensors")
    shipped = Path(str(resources.files("pdmd.evaluation"))) / "weights"
    assert state.keys() == load_file(shipped / "glyph_classifier.safetensors").keys()
    assert all(value.dtype == torch.float16 for value in state.values())
