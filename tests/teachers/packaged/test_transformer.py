"""The image transformer: initialisation, conditioning, locality of patches, and errors."""

import pytest
import torch

from pdmd.teachers.packaged.transformer import ImageTransformer


def trained(**settings):
    """Returns a transformer without the zeros of its initialisation."""
    torch.manual_seed(0)
    network = ImageTransformer(**settings)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


def test_it_predicts_zero_at_initialisation():
    x, t = torch.randn(3, 1, 8, 8), torch.rand(3)
    assert not ImageTransformer()(x, t, torch.tensor([0, 5, 10])).any()


def test_it_depends_on_the_image_the_time_and_the_class():
    network = trained()
    x, t, label = torch.randn(2, 1, 8, 8), torch.tensor([0.2, 0.8]), torch.tensor([1, 10])
    value = network(x, t, label)
    assert value.shape == x.shape
    for changed in (network(x + 1, t, label), network(x, t / 2, label), network(x, t, label - 1)):
        assert not torch.allclose(value, changed, atol=1e-3)
    torch.testing.assert_close(network(x[:1], t[:1], label[:1]), value[:1])


def test_it_is_rebuilt_from_its_configuration():
    network = trained(image_size=12, channels=3, patch_size=3, width=32, depth=2, classes=4)
    again = ImageTransformer(**network.config)
    again.load_state_dict(network.state_dict())
    x, t, label = torch.randn(2, 3, 12, 12), torch.rand(2), torch.tensor([0, 4])
    assert torch.equal(network(x, t, label), again(x, t, label))


def test_invalid_sizes_raise():
    with pytest.raises(ValueError, match="patches of 3 do not tile an image of 8 pixels"):
        ImageTransformer(patch_size=3)
    with pytest.raises(ValueError, match="5 heads do not divide a width of 64"):
        ImageTransformer(heads=5)
