"""Wan image to video against its pipeline: guidance, the known frame, folders."""

from types import SimpleNamespace

import pytest
import torch
from diffusers.pipelines.wan import pipeline_wan_i2v

from pdmd import (
    Guided,
    PhasePlan,
    sample,
)
from pdmd.teachers import (
    WanImageTeacher,
    WanTeacher,
)
from pdmd.teachers.base import teachers
from pdmd.teachers.conditioning.prompt_files import read_image_prompts
from tests.helpers.distilling import distill
from tests.helpers.tiny_families import close, family, noise, ode, wan_pipeline
from tests.helpers.tiny_flows import FLOWS, flow, saved
from tests.helpers.tiny_pipelines import WAN_I2V


def pair(teacher):
    return teacher.encode(teacher.prompts), teacher.encode([None])


def test_every_network_of_image_to_video_has_its_own_guidance():
    teacher, kind = flow("wan_i2v"), FLOWS["wan_i2v"]
    condition, null = pair(teacher)
    pipeline = kind.pipeline(teacher, shift=3.0)
    expected = kind.run(pipeline, teacher, condition, null, scale=(4.0, 2.0), steps=5)
    times = pipeline.scheduler.sigmas.tolist()
    assert times[1] > 0.9 > times[2]
    close(ode(Guided(teacher, (4.0, 2.0)), condition, times), expected)


@pytest.mark.parametrize("name", ["wan_i2v", "wan_i2v_2.1", "wan_i2v_5b"])
def test_guidance_drops_the_text_and_keeps_the_image(name):
    teacher = flow(name)
    condition, null = pair(teacher)
    x = noise(teacher, 3)
    with torch.no_grad():
        guided = Guided(teacher, 3.0)(x, 0.5, condition).value
        value = teacher(x, 0.5, condition).value
        bare = condition.clone()
        bare["prompt"] = null["prompt"].expand_as(bare["prompt"])
        unconditional = teacher(x, 0.5, bare).value
    close(guided, unconditional + 3 * (value - unconditional))
    for key in condition.exclude("prompt").keys():
        assert torch.equal(teacher.unconditional(condition, null)[key], condition[key])
    assert not torch.equal(null["first"].expand_as(condition["first"]), condition["first"])


@pytest.mark.parametrize("t", [1.0, 0.5, 1e-3, 0.0])
def test_a_first_frame_that_is_known_has_its_exact_velocity(t):
    teacher = flow("wan_i2v_5b")
    condition, _ = pair(teacher)
    first, noisy = condition["first"], noise(teacher, 3)
    eps = noisy[:, :, :1].clone()
    noisy[:, :, :1] = (1 - t) * first + t * eps
    with torch.no_grad():
        prediction = teacher(noisy, t, condition)
    close(prediction.to("x0")[:, :, :1], first)
    # at time 0 the noise has left no trace, and its mean is 0
    close(prediction.value[:, :, :1], (eps if t else 0) - first, 5e-4 if t else 0)


@pytest.mark.parametrize("name", ["wan_i2v", "wan_i2v_2.1", "wan_i2v_5b"])
def test_image_to_video_loads_and_samples_as_its_pipeline_does(tmp_path, monkeypatch, name):
    # the pipeline takes ftfy to be installed; plain words need no fixing
    unfixed = SimpleNamespace(fix_text=lambda text: text)
    monkeypatch.setattr(pipeline_wan_i2v, "ftfy", unfixed, raising=False)
    teacher = flow(name)
    pipeline, pictures = saved(tmp_path, name)
    size = {k: FLOWS[name].arguments[k] for k in ("height", "width", "frames")}
    options = {"folder": str(tmp_path / "pipeline"), "dtype": "float32", **size}
    loaded = teachers.get("wan_i2v")(prompts=str(tmp_path / "prompts.jsonl"), **options)
    assert loaded.latent_shape == teacher.latent_shape and loaded.shift == 3.0
    for key, weight in teacher.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[key])
    condition = loaded.encode(loaded.prompts)
    start = noise(loaded, 2)

    def run(i, output):
        return pipeline(
            image=pictures[i],
            prompt=["a cat", "a dog"][i],
            negative_prompt="",
            guidance_scale=3.0,
            max_sequence_length=512,
            height=size["height"],
            width=size["width"],
            num_frames=size["frames"],
            latents=start[i : i + 1],
            num_inference_steps=3,
            output_type=output,
        ).frames

    expected = torch.cat([run(i, "latent") for i in range(2)])
    times = pipeline.scheduler.sigmas.tolist()
    latents = ode(Guided(loaded, 3.0), condition, times)
    close(latents, expected)
    close(loaded.decode(latents[:1]), run(0, "pt").transpose(1, 2))
    null = loaded.encode([None, None])
    assert list(null.keys()) == ["prompt"] and null.batch_size == (2,)
    named = teachers.get("wan_i2v")(meta=True, **options)
    assert {p.device.type for p in named.parameters()} == {"meta"}
    assert {b.device.type for b in named.buffers()} <= {"cpu"}


def test_image_to_video_is_distilled_on_texts_with_images(tmp_path):
    saved(tmp_path, "wan_i2v")
    loaded = WanImageTeacher.from_pretrained(
        tmp_path / "pipeline",
        prompts=read_image_prompts(str(tmp_path / "prompts.jsonl")),
        dtype="float32",
        **{k: WAN_I2V[k] for k in ("height", "width", "frames")},
    )
    plan = PhasePlan.from_timesteps((1.0, 0.9, 0.0))
    student = distill(Guided(loaded, (3.0, 2.0)), plan, updates=1, fake_updates=1, batch_size=2)
    x = sample(student, student.encode(loaded.prompts))
    assert x.shape == (2, *loaded.latent_shape) and x.isfinite().all()
    with pytest.raises(ValueError, match="'first' is missing"):
        loaded(noise(loaded, 1), 0.5)


def test_networks_go_to_the_teacher_of_their_kind(tmp_path):
    with pytest.raises(ValueError, match=r"needs a first image; take WanImageTeacher \(wan_i2v\)"):
        WanTeacher(flow("wan_i2v_2.1").backbone)
    wan_pipeline(family("wan_2.1")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is text to video, which WanTeacher \(wan\) loads"):
        WanImageTeacher.from_pretrained(tmp_path, height=32, width=16, frames=9)
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        odd = WanTransformer3DModel(in_channels=20, num_layers=1)
        ends = WanTransformer3DModel(in_channels=36, num_layers=1, pos_embed_seq_len=514)
    with pytest.raises(ValueError, match="has 20 input and 16 output channels; .* takes 16 or 36"):
        WanImageTeacher(odd)
    with pytest.raises(ValueError, match="between a first and a last image"):
        WanImageTeacher(ends)
