"""The MLP denoiser: conditions, and save and load."""

import torch

from pdmd import LinearVP, MlpDenoiser, RectifiedFlow
from pdmd.teachers.mixture import encode_labels


def test_without_a_condition_the_null_class_is_evaluated():
    network = MlpDenoiser.rectified_flow(dim=3, classes=4, width=8)
    x = torch.randn(5, 3)
    null = encode_labels([None] * 5, 4)
    assert torch.equal(network(x, 0.5).value, network(x, 0.5, null).value)
    labelled = network(x, 0.5, encode_labels([0, 1, 2, 3, 0], 4)).value
    assert not torch.allclose(network(x, 0.5).value, labelled)


def test_samples_are_independent_of_their_batch():
    network = MlpDenoiser(dim=2, schedule=LinearVP(), kind="x0", width=8)
    x, t = torch.randn(4, 2), torch.tensor([0.1, 0.4, 0.7, 1.0])
    whole, alone = network(x, t).value, network(x[1:2], t[1:2]).value
    torch.testing.assert_close(whole[1:2], alone)


def test_weights_round_trip_through_the_state_dict():
    one, other = (MlpDenoiser.rectified_flow(dim=2, classes=3, width=8) for _ in range(2))
    x, condition = torch.randn(2, 2), encode_labels([0, 2], 3)
    assert not torch.equal(one(x, 0.3, condition).value, other(x, 0.3, condition).value)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(x, 0.3, condition).value, other(x, 0.3, condition).value)
    assert isinstance(one.schedule, RectifiedFlow) and one.kind == "velocity"
