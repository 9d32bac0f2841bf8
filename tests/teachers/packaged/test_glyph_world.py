"""The world of glyphs and the classifier that it is measured by."""

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
    return GlyphBank(2, seed=11)  # not the shapes that anything was trained on


def test_a_prompt_is_a_characters_name_and_has_every_face(bank):
    assert len(CHARACTERS) == len(set(NAMES)) == 46 and len(FACES) == 12
    assert NAMES[CHARACTERS.index("A")] == "LATIN CAPITAL LETTER A"
    assert bank.masks.shape == (46, 12, 2, SIDE, SIDE)
    shapes = bank.masks.float().mean(2)  # no two of a prompt's faces look alike
    for character in shapes:
        distance = torch.cdist(character.flatten(1), character.flatten(1))
        assert distance.fill_diagonal_(torch.inf).min() > 100


def test_every_glyph_stands_whole_in_its_picture(bank):
    ink = bank.masks > 127
    edges = (ink[..., 0, :], ink[..., -1, :], ink[..., 0], ink[..., -1])
    assert all(edge.float().mean() < 0.01 for edge in edges)
    assert (0.02 < ink.float().mean((-1, -2))).all()  # and none is missing


def test_the_same_seed_renders_and_draws_the_same(bank):
    assert torch.equal(render_masks(2, seed=11), bank.masks)
    one, other = (bank.draw(64, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one.pictures, other.pictures) and torch.equal(one.face, other.face)
    asked = torch.arange(46)
    assert torch.equal(bank.draw(46, torch.Generator(), asked).character, asked)


def test_draws_are_even_in_faces_and_white_where_there_is_no_ink(bank):
    glyphs = bank.draw(6000, torch.Generator().manual_seed(0))
    share = torch.bincount(glyphs.face, minlength=12) / len(glyphs)
    assert torch.allclose(share, torch.full((12,), 1 / 12), atol=0.02)
    assert 0 <= glyphs.pictures.min() and glyphs.pictures.max() == 1
    assert (glyphs.pictures[:, :, 0, 0] == 1).all(1).float().mean() > 0.99


def test_the_classifier_that_ships_knows_pictures_it_has_not_seen(bank):
    classifier = GlyphClassifier.from_package()
    glyphs = bank.draw(2000, torch.Generator().manual_seed(1))
    character, face = classifier(classifier.features(glyphs.pictures))
    assert (character.argmax(1) == glyphs.character).float().mean() > 0.98
    assert (face.argmax(1) == glyphs.face).float().mean() > 0.95


def test_the_classifier_is_trained_and_written_the_same_way(tmp_path):
    classifier = train_glyph_classifier(updates=2, variants=1, progress=False)
    again = train_glyph_classifier(updates=2, variants=1, progress=False)
    for one, other in zip(classifier.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other) and not one.requires_grad
    classifier.save(tmp_path / "classifier.safetensors")
    state = load_file(tmp_path / "classifier.safetensors")
    shipped = Path(str(resources.files("pdmd.evaluation"))) / "weights"
    assert state.keys() == load_file(shipped / "glyph_classifier.safetensors").keys()
    assert all(value.dtype == torch.float16 for value in state.values())
