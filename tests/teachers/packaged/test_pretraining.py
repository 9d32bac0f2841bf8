"""Pretraining: convergence to the closed form, seeds, and the arguments of networks."""

import pytest
import torch
from tensordict import TensorDict

from pdmd import Guided, LinearVP, MixtureTeacher, MlpDenoiser
from pdmd.teachers.packaged.pretraining import (
    minimise,
    network_arguments,
    pretrain,
    pretrained_network,
)


def test_a_pretrained_network_approximates_the_teacher():
    teacher = MixtureTeacher.random(dim=2, classes=2, modes=1)
    arguments = {"kind": "velocity", "dim": 2, "classes": 2, "width": 32, "depth": 2}
    few, many = (
        pretrained_network(teacher, "mlp", arguments, updates=n, seed=0, progress=False)
        for n in (2, 400)
    )
    condition = teacher.encode([0, 1] * 500)
    generator = torch.Generator().manual_seed(1)
    x_0 = teacher.sample(1000, condition, generator=generator)
    x_t = 0.5 * x_0 + 0.5 * torch.randn(x_0.shape, generator=generator)
    expected = teacher(x_t, 0.5, condition).value
    errors = [(n(x_t, 0.5, condition).value - expected).square().mean() for n in (few, many)]
    assert errors[1] < 0.1 * errors[0]
    assert not any(p.requires_grad for p in many.parameters())


def test_pretraining_depends_on_its_seed_only():
    teacher = MixtureTeacher.random(dim=2, classes=0, schedule=LinearVP())

    def weights(seed):
        torch.manual_seed(0)
        network = MlpDenoiser(dim=2, schedule=LinearVP(), kind="x0", width=8)
        state = torch.get_rng_state()

        def source(n, generator):
            return teacher.sample(n, generator=generator), None

        average = pretrain(network, source, updates=3, seed=seed, progress=False)
        assert torch.equal(torch.get_rng_state(), state)  # the global generator is not used
        return torch.cat([p.flatten() for p in average.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_minimise_reaches_the_minimum():
    network = torch.nn.Linear(1, 1)
    x = torch.linspace(-1, 1, 16)[:, None]

    def loss():
        return (network(x) - (3 * x - 1)).square().mean()

    minimise(loss, network, updates=400, lr=0.1, name="line", progress=False)
    assert float(network.weight.detach()) == pytest.approx(3, abs=1e-2)
    assert float(network.bias.detach()) == pytest.approx(-1, abs=1e-2)


class Captioned(MixtureTeacher):
    def encode(self, prompts):
        return TensorDict({"text": torch.zeros(len(prompts), 3)}, batch_size=[len(prompts)])


def arguments_for(teacher):
    condition = teacher.encode(teacher.prompts)
    return network_arguments(
        teacher, condition, teacher_name="custom", name="mlp", arguments={"width": 8, "depth": 2}
    )


def test_a_network_has_the_classes_and_kind_of_its_teacher():
    teacher = MixtureTeacher.random(dim=3, classes=4)
    expected = {"kind": "velocity", "dim": 3, "classes": 4, "width": 8, "depth": 2}
    assert arguments_for(teacher) == arguments_for(Guided(teacher, 2.0)) == expected
    teacher.kind = "score"
    assert arguments_for(teacher)["kind"] == "x0"


def test_teachers_that_a_network_does_not_support_raise():
    teacher = MixtureTeacher.random(dim=4)
    teacher.latent_shape = (1, 2, 2)
    with pytest.raises(ValueError, match=r"custom has no weights .*'mlp'.* shape \(1, 2, 2\)"):
        arguments_for(teacher)
    with pytest.raises(ValueError, match="'mlp' requires a condition 'label'"):
        arguments_for(Captioned(torch.zeros(1, 2)))
