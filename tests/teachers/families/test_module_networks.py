"""SiT and EDM: networks of importable modules, against the published equations of sampling."""

import functools

import pytest
import torch
from safetensors.torch import save_file

from pdmd import Guided
from pdmd.conformance import check
from pdmd.diffusion.sampling import initial_noise
from pdmd.teachers.base import teachers
from tests.helpers.tiny_families import close, noise, ode

MODULE = "tests.helpers.published_networks"
SETTINGS = {
    "sit": {"module": f"{MODULE}:SiT"},
    "edm": {"module": f"{MODULE}:Precond", "network": {"label_dim": 5}},
    "edm_unconditional": {"module": f"{MODULE}:Precond"},
}


@functools.cache
def teacher_of(name):
    return teachers.get(name.split("_")[0])(**SETTINGS[name]).requires_grad_(False)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_network_of_a_module_conforms(name):
    report = check(teacher_of(name), skip=["score"])
    assert report.passed, str(report)


def published_sit(network, x, labels, null, scale, channels, steps):
    """Euler steps of the published velocity from noise at time 0 to data at time 1."""
    for i in range(steps):
        time = torch.full((len(x),), i / steps)
        given, free = network(x, time, labels), network(x, time, null)
        guided = free[:, :channels] + scale * (given - free)[:, :channels]
        x = x + torch.cat([guided, given[:, channels:]], 1) / steps
    return x


@pytest.mark.parametrize("channels", [3, 4])
def test_sit_samples_by_the_published_equation(channels):
    teacher = teachers.get("sit")(**SETTINGS["sit"], guided_channels=channels)
    teacher.requires_grad_(False)
    labels, null = torch.tensor([1, 4, 2]), torch.full((3,), 5)
    expected = published_sit(teacher.backbone, noise(teacher, 3), labels, null, 4.0, channels, 5)
    times = [1 - i / 5 for i in range(6)]
    close(ode(Guided(teacher, 4.0), teacher.encode([1, 4, 2]), times), expected)
    with pytest.raises(ValueError, match="guided_channels must be from 1 to 4, got 5"):
        teachers.get("sit")(**SETTINGS["sit"], guided_channels=5)


def test_edm_samples_by_the_published_equation():
    teacher = teacher_of("edm")
    labels = torch.eye(5)[[1, 4, 2]]
    steps, rho = 6, 7
    roots = [
        80 ** (1 / rho) + i / steps * (0.002 ** (1 / rho) - 80 ** (1 / rho)) for i in range(7)
    ]
    sigmas = [root**rho for root in roots]
    x = initial_noise(teacher, 3, torch.Generator().manual_seed(0))
    assert x.std() == pytest.approx(80, rel=0.1)
    for now, then in zip(sigmas, sigmas[1:], strict=False):
        denoised = teacher.backbone(x, torch.full((3,), now), labels)
        x = x + (then - now) * (x - denoised) / now
    times = [1 - i / steps for i in range(steps + 1)]
    close(ode(teacher, teacher.encode([1, 4, 2]), times), x, 1e-4)


@pytest.mark.parametrize("name", ["sit", "edm"])
def test_weights_load_at_once_or_by_their_places(tmp_path, name):
    other = teachers.get(name)(**SETTINGS[name], seed=3)
    path = str(tmp_path / "network.safetensors")
    save_file(other.backbone.state_dict(), path)
    loaded = teachers.get(name)(**SETTINGS[name], weights=path)
    x = noise(other, 2)
    condition = other.encode([0, None])
    assert torch.equal(loaded(x, 0.5, condition).value, other(x, 0.5, condition).value)
    outline = teachers.get(name)(**SETTINGS[name], weights=path, meta=True)
    assert {p.device.type for p in outline.parameters()} == {"meta"}
    from pdmd.distributed.weight_sources import sources_of

    for at, part in outline.backbone.named_modules():
        for own, source in sources_of(part).items():
            whole = tuple(
                (0, n)
                for n in dict(other.backbone.named_modules())[at]
                ._parameters.get(own, dict(other.backbone.named_modules())[at]._buffers.get(own))
                .shape
            )
            stored = other.backbone.state_dict()[f"{at}.{own}".strip(".")]
            assert torch.equal(source.read(tuple(slice(a, b) for a, b in whole)), stored)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"module": "nowhere:SiT"}, "cannot import 'nowhere:SiT'"),
        ({"module": f"{MODULE}:Dit"}, "cannot import"),
        ({"module": f"{MODULE}:SiT", "network": {"colour": 1}}, "does not take .*colour"),
        ({"module": f"{MODULE}:SiT", "weights": "sit.pt"}, "is no safetensors file; convert"),
    ],
)
def test_a_network_that_cannot_be_built_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        teachers.get("sit")(**arguments)


def test_weights_of_another_network_are_named(tmp_path):
    path = str(tmp_path / "network.safetensors")
    state = teacher_of("sit").backbone.state_dict()
    save_file({key: value for key, value in state.items() if key != "pos_embed"}, path)
    with pytest.raises(ValueError, match="lacks pos_embed; is it of a SiT"):
        teachers.get("sit")(**SETTINGS["sit"], weights=path)
