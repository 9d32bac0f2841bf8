"""Model families of the flow kind against the pipelines of diffusers."""

import pytest
import torch

from pdmd import Guided, PhasePlan
from pdmd.diffusion.schedules import shift_times
from tests.helpers.tiny_families import close, noise, ode
from tests.helpers.tiny_flows import FLOWS, flow, oracle


def pair(teacher):
    return teacher.encode(teacher.prompts), teacher.encode([None])


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("name", FLOWS)
def test_a_family_samples_as_its_pipeline_does(name, scale):
    teacher, family = flow(name), FLOWS[name]
    condition, null = pair(teacher)
    pipeline = family.pipeline(teacher, **family.scheduler)
    expected = family.run(pipeline, teacher, condition, null, scale=scale, steps=5)
    times = pipeline.scheduler.sigmas.tolist()
    close(ode(Guided(teacher, scale), condition, times), expected)


@pytest.mark.parametrize("name", [name for name in FLOWS if FLOWS[name].even is not None])
def test_the_shift_is_the_released_schedulers(name):
    teacher, family = flow(name), FLOWS[name]
    condition, null = pair(teacher)
    arguments = {k: v for k, v in family.scheduler.items() if k != "shift_terminal"}
    pipeline = family.pipeline(teacher, **arguments)
    family.run(pipeline, teacher, condition, null, scale=1.0, steps=4, **family.even)
    even = 1 - torch.arange(5, dtype=torch.float64) / 4
    close(pipeline.scheduler.sigmas.double(), shift_times(even, teacher.shift), 1e-6)


@pytest.mark.parametrize("name", FLOWS)
def test_an_oracle_gets_its_data_back(name):
    family = FLOWS[name]
    teacher = family.cls.from_config(**family.arguments)
    x0 = noise(teacher, 1, seed=1)
    condition, null = pair(teacher)
    if getattr(teacher, "replaces", False):  # its first frame is given
        condition["first"] = x0[:, :, :1].expand_as(condition["first"])
    oracle(name, teacher, x0)
    everywhere = x0.expand(3, *teacher.latent_shape)
    pipeline = family.pipeline(teacher, **family.scheduler)
    close(family.run(pipeline, teacher, condition, null, scale=4.0, steps=4), everywhere)
    times = PhasePlan.uniform(4, shift=teacher.shift).timesteps
    close(ode(teacher, condition, times), everywhere)
    close(ode(Guided(teacher, 4.0), condition, times), everywhere)
    with torch.no_grad():
        t = torch.tensor([0.2, 0.6, 1.0])
        close(teacher(noise(teacher, 3), t, condition).to("x0"), everywhere)


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
