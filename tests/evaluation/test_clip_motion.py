"""Motion of clips: known velocities are recovered, spreads are those in closed form."""

import math

import pytest
import torch

from pdmd.evaluation.clip_motion import clip_motion, direction_count, velocity_spread
from pdmd.teachers.packaged.clip_world import ClipBank


@pytest.fixture(scope="module")
def clips():
    return ClipBank().draw(400, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_true_velocities_are_recovered(clips, noise):
    generator = torch.Generator().manual_seed(2)
    more = noise * torch.randn(clips.pictures.shape, generator=generator)
    motion = clip_motion((clips.pictures + more).clamp(0, 1))
    error = (motion.velocity - clips.velocity).norm(dim=1)
    true = clips.velocity.norm(dim=1)
    assert float(error.mean() / true.mean()) < 0.03 and error.max() < 0.06
    assert float(motion.speed.mean() / true.mean()) == pytest.approx(1, abs=0.005)
    assert motion.path_error.max() < 0.2


def test_a_clip_played_backwards_reverses_and_a_still_one_has_no_speed(clips):
    forwards, backwards = clip_motion(clips.pictures), clip_motion(clips.pictures.flip(2))
    torch.testing.assert_close(backwards.velocity, -forwards.velocity)
    still = clip_motion(clips.pictures[:, :, :1].expand(-1, -1, 8, -1, -1))
    assert still.speed.max() < 1e-12 and still.path_error.max() < 1e-12


def test_a_jump_is_no_straight_path():
    """An object that jumps by 4 between frames 1 and 2 of 4 is 0.8 off its straight path."""
    pictures = torch.ones(1, 1, 4, 8, 8)
    for frame, x in enumerate((1, 1, 5, 5)):
        pictures[0, 0, frame, 3, x] = 0
    motion = clip_motion(pictures)
    assert motion.velocity[0].tolist() == pytest.approx([1.6, 0])
    assert float(motion.path_error) == pytest.approx(math.sqrt(0.8))


def test_empty_frames_are_in_the_middle_and_images_are_errors():
    assert not clip_motion(torch.ones(2, 1, 3, 4, 4)).velocity.any()
    for shape in ((2, 1, 4, 4), (2, 1, 1, 4, 4)):
        with pytest.raises(ValueError, match="at least two frames"):
            clip_motion(torch.ones(shape))


def test_spread_and_directions_in_closed_form():
    angle = 2 * math.pi * torch.arange(8, dtype=torch.float64) / 8
    around = torch.stack([angle.cos(), angle.sin()], 1)
    one, both = torch.zeros(8).long(), torch.arange(16) // 8
    assert velocity_spread(around, one) == pytest.approx(8 / 7)  # unbiased, of radius 1
    assert direction_count(around, one) == pytest.approx(8)
    still = around[:1].expand(8, 2)
    assert velocity_spread(torch.cat([around, still]), both) == pytest.approx(4 / 7)
    assert direction_count(torch.cat([around, still]), both) == pytest.approx(4.5)
    with pytest.raises(ValueError, match="has one clip"):
        velocity_spread(around, torch.arange(8))
