"""Networks that take a level as their time, and may predict a variance."""

from types import SimpleNamespace

import pytest
import torch

from pdmd.teachers import DDPMTeacher
from pdmd.teachers.families.discrete_time_teacher import DiscreteTimeTeacher
from tests.helpers.tiny_discrete import TINY


def config(channels, out_channels):
    return SimpleNamespace(in_channels=channels, out_channels=out_channels)


@pytest.mark.parametrize("out_channels", [None, 4, 8])
def test_a_network_predicts_latents_with_or_without_a_variance(out_channels):
    DiscreteTimeTeacher.check_channels_out(config(4, out_channels))


@pytest.mark.parametrize("out_channels", [1, 5, 12])
def test_other_numbers_of_channels_raise(out_channels):
    with pytest.raises(ValueError, match=f"4 input and {out_channels} output channels"):
        DiscreteTimeTeacher.check_channels_out(config(4, out_channels))


def test_the_variance_is_dropped_and_time_is_the_level():
    teacher = DDPMTeacher.from_config(**{**TINY, "learned_variance": True})
    x, t = torch.randn(2, *teacher.latent_shape), torch.tensor([0.5, 1.0])
    levels = torch.tensor([499.0, 999.0])
    whole = teacher.backbone(x, levels, return_dict=False)[0]
    assert whole.shape[1] == 2 * x.shape[1]
    torch.testing.assert_close(teacher(x, t).value, whole[:, : x.shape[1]])
