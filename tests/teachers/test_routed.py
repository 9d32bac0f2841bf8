"""Routed teachers: each sample is evaluated by the network of its time."""

import pytest
import torch

from pdmd import Guided, IntervalRouter, LinearVP, MixtureTeacher
from pdmd.teachers import RoutedTeacher
from pdmd.teachers.routed import with_router


def mixture(mean, **settings):
    means = torch.tensor([[mean, 0.0], [0.0, mean]])
    return MixtureTeacher(means, 0.5, labels=torch.tensor([0, 1]), **settings)


@pytest.fixture
def teachers():
    return [mixture(3.0), mixture(-1.0)]


@pytest.fixture
def routed(teachers):
    return RoutedTeacher(teachers, IntervalRouter([1.0, 0.6, 0.0]))


def test_each_sample_is_evaluated_by_the_network_of_its_time(teachers, routed):
    x, t = torch.randn(4, 2), torch.tensor([0.9, 0.2, 0.7, 0.5])
    condition = routed.encode([0, 1, 0, 1])
    value = routed(x, t, condition).value
    for i, index in enumerate([0, 1, 0, 1]):
        alone = teachers[index](x[i : i + 1], t[i : i + 1], condition[i : i + 1]).value
        torch.testing.assert_close(value[i : i + 1], alone)


def test_the_part_of_an_interval_is_the_network_that_serves_it(teachers, routed):
    assert routed.part(1.0, 0.6) is teachers[0]
    assert routed.part(0.5, 0.1) is teachers[1]
    assert routed.part(1.0, 0.0) is routed.routed


def test_the_first_teacher_encodes_prompts(teachers, routed):
    assert routed.first is teachers[0] and list(routed.prompts) == [0, 1]
    assert torch.equal(routed.encode([1, None])["label"], teachers[0].encode([1, None])["label"])


def test_each_network_has_its_own_guidance_scale(teachers, routed):
    x, t = torch.randn(2, 2), torch.tensor([0.9, 0.2])
    condition = routed.encode([0, 1])
    value = Guided(routed, (3.0, 2.0))(x, t, condition).value
    for i, scale in enumerate([3.0, 2.0]):
        row = slice(i, i + 1)
        alone = Guided(teachers[i], scale)(x[row], t[row], condition[row]).value
        torch.testing.assert_close(value[row], alone)
    with pytest.raises(ValueError, match="3 guidance scales for a RoutedTeacher of 2 networks"):
        Guided(routed, (1.0, 2.0, 3.0))


def test_teachers_on_different_schedules_raise():
    teachers = [mixture(1.0), mixture(1.0, schedule=LinearVP())]
    with pytest.raises(ValueError, match="one schedule"):
        RoutedTeacher(teachers, IntervalRouter([1.0, 0.5, 0.0]))


def test_another_router_serves_the_same_networks(teachers, routed):
    other = with_router(routed, IntervalRouter([1.0, 0.3, 0.0]))
    assert list(other.routed.denoisers) == teachers
    assert routed.part(0.5, 0.4) is teachers[1] and other.part(0.5, 0.4) is teachers[0]
    with pytest.raises(ValueError, match="MixtureTeacher has one; leave the router out"):
        with_router(teachers[0], IntervalRouter([1.0, 0.0]))
    with pytest.raises(ValueError, match="need 3 boundaries"):
        with_router(routed, IntervalRouter([1.0, 0.6, 0.3, 0.0]))
