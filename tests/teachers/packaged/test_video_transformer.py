"""The video transformer: what its output depends on."""

import pytest
import torch

from pdmd.teachers.packaged.video_transformer import VideoTransformer

SMALL = dict(frames=4, image_size=8, width=32, depth=1, vocabulary=5, words=2)


def inputs(channels=1):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, channels, 4, 8, 8, generator=generator)
    return x, torch.tensor([0.3, 0.7]), torch.tensor([[1, 2], [3, 0]])


def trained(**arguments):
    """A network with random weights in place of the initial zeros."""
    torch.manual_seed(0)
    network = VideoTransformer(**SMALL | arguments)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network


def test_patches_return_to_their_places():
    """Where embedding and output are the identity, so is the network without blocks."""
    network = VideoTransformer(**SMALL | {"depth": 0, "channels": 2, "width": 64})
    network.norm = torch.nn.Identity()
    for layer in (network.embed, network.out):
        torch.nn.init.eye_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    for parameter in (network.moment, network.place):
        torch.nn.init.zeros_(parameter)
    x, t, tokens = inputs(channels=2)
    torch.testing.assert_close(network(x, t, tokens), x)


def test_an_untrained_network_predicts_zero():
    assert not VideoTransformer(**SMALL)(*inputs()).any()


def test_every_frame_depends_on_every_other_and_on_time_and_words():
    network = trained()
    x, t, tokens = inputs()
    x.requires_grad_()
    out = network(x, t, tokens)
    (gradient,) = torch.autograd.grad(out[0, :, 0].square().sum(), x)
    assert gradient[0].abs().amax((0, 2, 3)).min() > 0 and not gradient[1].any()
    assert (network(x, t.flip(0), tokens) - out).abs().max() > 1e-3
    swapped = network(x, t, tokens.flip(1))  # the order of the words counts
    assert (swapped - out).abs().amax((1, 2, 3, 4)).min() > 1e-4


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"frames": 5}, "do not tile 5 frames"),
        ({"image_size": 10}, "of 10 pixels"),
        ({"heads": 5}, "5 heads do not divide"),
    ],
)
def test_sizes_that_do_not_fit_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        VideoTransformer(**SMALL | arguments)
