import pytest
import torch
from tensordict import TensorDict

from pdmd import Denoiser, Guided, MixtureTeacher, MlpDenoiser, RectifiedFlow, sample_ode


class Recording(Denoiser):
    """A linear network that records the times it is evaluated at."""

    def __init__(self, **settings):
        super().__init__(schedule=RectifiedFlow(), kind="velocity", latent_shape=(2,), **settings)
        self.layer = torch.nn.Linear(2, 2)
        self.calls = []

    def network(self, x_t, t, condition):
        self.calls.append(t)
        return self.layer(x_t)


@pytest.mark.parametrize("t", [0.5, torch.tensor(0.5), torch.full((3,), 0.5)])
def test_networks_receive_a_float64_time_per_sample(t):
    denoiser, x = Recording(), torch.randn(3, 2)
    prediction = denoiser(x, t)
    assert torch.equal(denoiser.calls[0], torch.full((3,), 0.5, dtype=torch.float64))
    assert prediction.kind == "velocity" and prediction.schedule is denoiser.schedule
    assert torch.equal(prediction.value, denoiser.layer(x)) and prediction.x_t is x


def test_the_precision_is_that_of_the_network_alone():
    denoiser, x = Recording(), torch.randn(3, 2)
    denoiser.precision = torch.bfloat16
    prediction = denoiser(x, 0.5)
    assert prediction.value.dtype == torch.bfloat16
    assert denoiser.calls[0].dtype == torch.float64
    assert prediction.to("x0").dtype == torch.float32


def test_trainable_copies_are_independent():
    denoiser = Recording().requires_grad_(False).eval()
    copy = denoiser.trainable_part(0.5, 0.0)
    assert denoiser.part(0.5, 0.0) is denoiser
    assert copy.training and all(p.requires_grad for p in copy.parameters())
    copy.layer.weight.data.zero_()
    assert bool(denoiser.layer.weight.any()) and not denoiser.layer.weight.requires_grad


def test_denoisers_without_parameters_cannot_be_trained():
    teacher = MixtureTeacher.random(dim=2)
    with pytest.raises(ValueError, match="MixtureTeacher has no parameters.*FromDenoiser"):
        teacher.trainable_copy()


def test_the_device_is_that_of_the_parameters():
    assert Recording().device == torch.device("cpu")
    assert MlpDenoiser.rectified_flow(dim=2, width=8).to("meta").device.type == "meta"


@pytest.mark.parametrize("time_range", [(-0.1, 1.0), (0.5, 0.5), (0.0, 1.1), (0.9, 0.1)])
def test_invalid_time_ranges_raise(time_range):
    with pytest.raises(ValueError, match=r"expected a time range with 0 <= low < high <= 1"):
        Recording(time_range=time_range)


def test_unknown_kinds_raise():
    with pytest.raises(ValueError, match="unknown prediction kind 'noise'"):
        MlpDenoiser(dim=2, schedule=RectifiedFlow(), kind="noise", width=8)


@pytest.mark.parametrize(
    ("key", "wrong", "error"),
    [
        (
            "schedule",
            "rectified_flow",
            "is an instance of Schedule, got 'rectified_flow'",
        ),
        ("schedule", RectifiedFlow, "got the class RectifiedFlow; pass one, as by Rectified"),
        ("latent_shape", 2, r"got 2; pass a tuple, as in \(2,\)"),
    ],
)
def test_declarations_of_other_types_are_named(key, wrong, error):
    class Plain(Denoiser):
        def network(self, x_t, t, condition):
            return x_t

    declared = {"schedule": RectifiedFlow(), "kind": "velocity", "latent_shape": (2,)}
    with pytest.raises(TypeError, match=error):
        Plain(**{**declared, key: wrong})


@pytest.mark.parametrize("size", [[2], [1], [4], [], [3, 1]])
def test_a_condition_has_a_row_per_sample(size):
    condition = TensorDict({"label": torch.zeros(size, dtype=torch.int64)}, batch_size=size)
    teacher = MixtureTeacher.random(dim=2, classes=2)
    for denoiser in (Recording(), Guided(teacher, 2.0)):
        with pytest.raises(ValueError, match=r"batch size \[.*\] for latents of 3 samples"):
            denoiser(torch.randn(3, 2), 0.5, condition)
    if len(size) != 1:
        with pytest.raises(ValueError, match="one row per sample, got batch size"):
            sample_ode(teacher, condition)


def test_a_network_that_needs_a_condition_says_so_without_one():
    denoiser = Recording()
    denoiser.network = lambda x_t, t, condition: x_t + condition["label"]
    with pytest.raises(TypeError, match="Recording was evaluated without a condition.*encode"):
        denoiser(torch.zeros(3, 2), 0.5)
    denoiser.network = lambda x_t, t, condition: x_t + "text"
    with pytest.raises(TypeError, match="unsupported operand"):  # as it was raised
        denoiser(torch.zeros(3, 2), 0.5)
