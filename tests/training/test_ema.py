"""Exponential moving averages, against their closed form."""

import pytest
import torch

from pdmd.training.ema import Ema


def network_of(value):
    network = torch.nn.BatchNorm1d(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(value)
        network.running_mean.fill_(10 * value)
    return network


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_the_average_is_the_weighted_sum_of_all_weights(decay):
    ema = Ema(network_of(1.0), decay)
    values = [2.0, -1.0, 0.5, 3.0, 3.0, -2.0]
    decays = [min(decay, (1 + i) / (10 + i)) for i in range(len(values))]
    for i, value in enumerate(values):
        ema.update(network_of(value), i)
    weights = [1 - gamma for gamma in decays]
    expected = torch.tensor(decays).prod()  # the initial weight is 1
    for i, value in enumerate(values):
        expected += weights[i] * value * torch.tensor(decays[i + 1 :]).prod()
    for parameter in ema.network.parameters():
        torch.testing.assert_close(parameter, expected.expand(3), rtol=1e-5, atol=1e-6)


def test_without_decay_the_average_is_the_network():
    ema, current = Ema(network_of(1.0), 0.0), network_of(0.3)
    ema.update(current, 0)
    for average, parameter in zip(ema.network.parameters(), current.parameters(), strict=True):
        assert torch.equal(average, parameter)


def test_buffers_are_copied_and_the_average_is_frozen():
    ema = Ema(network_of(1.0), 0.9)
    ema.update(network_of(2.0), 0)
    assert torch.equal(ema.network.running_mean, torch.full((3,), 20.0))
    assert not ema.network.training
    assert not any(parameter.requires_grad for parameter in ema.network.parameters())


def test_the_average_does_not_share_weights_with_the_network():
    network = network_of(1.0)
    ema = Ema(network, 0.9)
    with torch.no_grad():
        network.weight.fill_(5.0)
    assert torch.equal(ema.network.weight, torch.ones(3))


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_out_of_range_raises(decay):
    with pytest.raises(ValueError, match=f"must be in \\[0, 1\\), got {decay}"):
        Ema(network_of(1.0), decay)
