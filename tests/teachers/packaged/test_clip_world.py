"""The clip world: rendering at any position, and the law of its motion."""

import math

import pytest
import torch
from torch.nn import functional

from pdmd.teachers.packaged.clip_world import (
    CLIP_CHARACTERS,
    CLIP_NAMES,
    SPEEDS,
    ClipBank,
    render_clips,
)


@pytest.fixture(scope="module")
def clips():
    return ClipBank().draw(4000, torch.Generator().manual_seed(3))


def test_whole_steps_of_the_supersampled_grid_are_exact():
    """Moving by a quarter of a pixel moves the mask by one of its own pixels."""
    masks = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0))
    path = torch.tensor([[[0.0, 0.0], [0.25, -0.5]]]).expand(2, -1, -1)
    drawn = render_clips(masks, path)
    moved = functional.pad(masks, (1, 0, 0, 2))[:, 2:, :16]  # right by 1, up by 2
    expected = [functional.avg_pool2d(m[:, None], 4)[:, 0] for m in (masks, moved)]
    torch.testing.assert_close(drawn, torch.stack(expected, 1))


def test_positions_between_pixels_are_interpolated():
    masks = torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(1))
    path = torch.tensor([[[0.25, 0.0], [0.35, 0.0], [0.5, 0.0]]])
    low, between, high = render_clips(masks, path)[0]
    torch.testing.assert_close(between, 0.6 * low + 0.4 * high)


def test_motion_and_faces_are_uniform_within_a_prompt(clips):
    speed = clips.velocity.norm(dim=1)
    low, high = SPEEDS
    assert low <= speed.min() and speed.max() <= high
    assert speed.mean() == pytest.approx((low + high) / 2, abs=0.01)
    sector = (torch.atan2(*clips.velocity.T.flip(0)) / (2 * math.pi) * 8).round().long() % 8
    for labels, number in ((sector, 8), (clips.face, 12), (clips.character, 20)):
        share = torch.bincount(labels, minlength=number) / len(clips)
        assert share.sub(1 / number).abs().max() < 5 * (1 / number / len(clips)) ** 0.5


def test_the_ink_stays_within_the_frame(clips):
    ink = (1 - clips.pictures).sum((1, 3, 4))
    assert float((ink.amin(1) / ink.amax(1)).min()) > 0.95
    assert 0 <= clips.pictures.min() and clips.pictures.max() == 1


def test_prompts_are_names_and_given_characters_are_drawn():
    assert len(set(CLIP_NAMES)) == len(CLIP_CHARACTERS) == 20
    assert "LATIN CAPITAL LETTER A" in CLIP_NAMES
    character = torch.tensor([4, 4, 7])
    again = [ClipBank().draw(3, torch.Generator().manual_seed(0), character) for _ in range(2)]
    assert torch.equal(again[0].character, character)
    assert torch.equal(again[0].pictures, again[1].pictures)
