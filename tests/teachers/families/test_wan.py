"""Wan against its pipeline: sampling, its two networks and their boundary, folders, text."""

import functools

import numpy as np
import pytest
import torch

from pdmd import (
    Guided,
    RoutedDenoiser,
)
from pdmd.teachers import (
    RoutedTeacher,
    WanTeacher,
)
from pdmd.teachers.base import teachers
from tests.helpers.tiny_encoders import t5
from tests.helpers.tiny_families import (
    FAMILIES,
    WAN,
    close,
    family,
    noise,
    ode,
    run_wan,
    transformers,
    wan_pipeline,
    wan_vae,
)


@pytest.mark.parametrize(
    ("name", "scales"),
    [
        ("wan_2.1", (5.0,)),
        ("wan_2.2_a14b", (4.0, 3.0)),
        ("wan_2.2_a14b", (4.0, 1.0)),
        ("wan_2.2_5b", (5.0,)),
        ("wan_2.1", (1.0,)),
    ],
)
def test_wan_samples_as_its_pipeline_does(name, scales):
    teacher = family(name)
    condition, null = teacher.encode(teacher.prompts), teacher.encode([None])
    pipeline = wan_pipeline(teacher, expand=name == "wan_2.2_5b", shift=teacher.shift)
    second = scales[1] if len(scales) > 1 else None
    expected = run_wan(
        pipeline, teacher, condition, null, scale=scales[0], scale_2=second, steps=5
    )
    times = pipeline.scheduler.sigmas.tolist()
    if len(scales) > 1:
        assert min(times) < 0.875 < times[1]
    close(ode(Guided(teacher, scales), condition, times), expected)


@pytest.mark.parametrize("ratio", [0.875, 0.9, 0.417])
def test_wan_routes_the_boundary_and_its_neighbours_as_its_pipeline_does(ratio):
    teacher = WanTeacher.from_config(**{**WAN, "boundary_ratio": ratio, "num_layers": 1})
    at = np.float32(ratio)
    times = [1.0, np.nextafter(at, np.float32(1)), at, np.nextafter(at, np.float32(0)), 0.2, 0.0]
    times = [float(t) for t in times]
    pipeline = wan_pipeline(teacher, ratio=ratio)
    given_sigmas = functools.partial(pipeline.scheduler.set_timesteps, sigmas=times[:-1])
    pipeline.scheduler.set_timesteps = lambda n, device=None: given_sigmas(device=device)
    used = {"pipeline": [], "teacher": []}
    who = "pipeline"
    for i, part in enumerate(transformers(teacher)):
        part.register_forward_pre_hook(lambda *_, i=i: used[who].append(i))
    condition, null = teacher.encode(teacher.prompts[:1]), teacher.encode([None])
    expected = run_wan(pipeline, teacher, condition, null, scale=1.0, steps=5)
    who = "teacher"
    close(ode(teacher, condition, times), expected)
    assert used["teacher"] == used["pipeline"]
    assert used["pipeline"][2:4] == [0, 1]


def test_every_network_of_two_has_its_own_guidance():
    teacher = family("wan_2.2_a14b")
    condition = teacher.encode(teacher.prompts[:2])
    x, t = noise(teacher, 2), torch.tensor([0.95, 0.5])
    with torch.no_grad():
        both = Guided(teacher, (4.0, 2.0))(x, t, condition).value
        close(both[:1], Guided(teacher, 4.0)(x, t, condition).value[:1])
        close(both[1:], Guided(teacher, 2.0)(x, t, condition).value[1:])
    assert Guided(teacher, (1.0, 1.0)).evaluations == 1
    with pytest.raises(ValueError, match="3 guidance scales"):
        Guided(teacher, (1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match="2 guidance scales"):
        Guided(family("wan_2.1"), (1.0, 2.0))


def test_an_expert_starts_at_the_network_of_its_phase():
    teacher = family("wan_2.2_a14b")
    high, low = teacher.routed.denoisers
    for t_start, t_end, source in ((1.0, 0.875, high), (0.875, 0.4, low), (0.4, 0.0, low)):
        for whole in (teacher, Guided(teacher, (4.0, 3.0))):
            part = whole.trainable_part(t_start, t_end)
            assert isinstance(part, WanTeacher)
            for own, other in zip(part.parameters(), source.parameters(), strict=True):
                assert torch.equal(own, other) and own is not other and own.requires_grad
            with pytest.raises(ValueError, match="no prompts"):
                part.encode(["a cat"])
    both = teacher.trainable_part(0.9, 0.8)
    assert isinstance(both, RoutedDenoiser) and len(both.denoisers) == 2


@pytest.mark.parametrize("name", ["wan_2.1", "wan_2.2_a14b", "wan_2.2_5b"])
def test_wan_loads_from_its_pipelines_folder(tmp_path, name):
    teacher = family(name)
    first = transformers(teacher)[0]
    wan_pipeline(teacher, expand=name == "wan_2.2_5b").save_pretrained(tmp_path)
    size = (teacher.first if isinstance(teacher, RoutedTeacher) else teacher).options
    arguments = {k: size[k] for k in ("height", "width", "frames")}
    text = (teacher.first if isinstance(teacher, RoutedTeacher) else teacher).text
    loaded = WanTeacher.from_pretrained(tmp_path, embeddings=text, dtype="float32", **arguments)
    assert isinstance(loaded, RoutedTeacher) == (name == "wan_2.2_a14b")
    assert loaded.latent_shape == teacher.latent_shape and loaded.shift == 3.0
    condition, x = teacher.encode(teacher.prompts), noise(teacher, 3)
    t = torch.tensor([0.95, 0.875, 0.3])
    with torch.no_grad():
        close(loaded(x, t, condition).value, teacher(x, t, condition).value, 1e-6)
    for key, weight in teacher.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[key])
    half = WanTeacher.from_pretrained(tmp_path, dtype="bfloat16", **arguments)
    drawn = WanTeacher.from_config(**{**FAMILIES[name][1], "dtype": "bfloat16"})
    dtypes = {k: v.dtype for k, v in half.state_dict().items()}
    assert {k: v.dtype for k, v in drawn.state_dict().items()} == dtypes
    assert set(dtypes.values()) == {torch.bfloat16, torch.float32}
    assert first.dtype == torch.float32
    if name == "wan_2.1":
        vae = wan_vae()
        mean, std = (
            torch.tensor(v).view(1, -1, 1, 1, 1)
            for v in (vae.config.latents_mean, vae.config.latents_std)
        )
        with torch.no_grad():
            expected = vae.decode(x[:1] * std + mean).sample
        assert expected.shape == (1, 3, 9, 32, 16)
        close(loaded.decode(x[:1]), (expected / 2 + 0.5).clamp(0, 1))


def test_wan_encodes_text_as_its_pipeline_does(tmp_path):
    teacher = family("wan_2.1")
    pipeline = wan_pipeline(teacher, text=t5(WAN["text_dim"]))
    pipeline.save_pretrained(tmp_path)
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\n")
    loaded = teachers.get("wan")(
        folder=str(tmp_path),
        prompts=str(tmp_path / "prompts.txt"),
        height=32,
        width=16,
        frames=9,
        dtype="float32",
    )
    assert list(loaded.prompts) == ["a cat", "a dog"]
    condition = loaded.encode([*loaded.prompts, None])
    expected, null = pipeline.encode_prompt(["a cat", "a dog"], max_sequence_length=512)
    close(condition["prompt"], torch.cat([expected, null[:1]]))
    assert condition["prompt"].shape == (3, 512, 32)
    with pytest.raises(ValueError, match="a text or None, got 3"):
        loaded.encode([3])
