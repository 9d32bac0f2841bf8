"""Flow families against the pipelines of diffusers: sampling, shifts, an oracle."""

import functools

import pytest
import torch

from pdmd import (
    Guided,
    PhasePlan,
)
from pdmd.diffusion.schedules import shift_times
from pdmd.teachers.families.tokens import pack
from tests.helpers.tiny_families import (
    FAMILIES,
    close,
    noise,
    ode,
    qwen_pipeline,
    run_qwen,
    run_wan,
    transformers,
    wan_pipeline,
)
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
def test_an_oracle_returns_its_sample(name):
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


def exact(teacher, x0, scale):
    """Replaces the network by the exact velocity of one sample, from its input and time alone."""

    def forward(self, hidden_states, timestep, **kwargs):
        rows = len(hidden_states)
        sigma = (timestep / scale).reshape(rows, *[1] * (hidden_states.ndim - 1))
        return ((hidden_states - x0) / sigma,)

    for part in transformers(teacher):
        part.forward = functools.partial(forward, part)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_oracle_of_qwen_image_and_wan_returns_its_sample(name):
    cls, arguments = FAMILIES[name]
    teacher = cls.from_config(**arguments)
    x0 = noise(teacher, 1, seed=1)
    condition, null = teacher.encode(teacher.prompts), teacher.encode([None])
    times = PhasePlan.uniform(4, shift=teacher.shift).timesteps
    if name == "qwen_image":
        exact(teacher, pack(x0), 1)
        pipeline = qwen_pipeline(teacher)
        theirs = run_qwen(pipeline, teacher, condition, null, scale=4.0, steps=4)
    else:
        exact(teacher, x0, 1000)
        pipeline = wan_pipeline(teacher, expand=False, shift=3.0)
        theirs = run_wan(pipeline, teacher, condition, null, scale=4.0, steps=4)
    everywhere = x0.expand(3, *teacher.latent_shape)
    close(theirs, everywhere)
    close(ode(teacher, condition, times), everywhere)
    close(ode(Guided(teacher, 4.0), condition, times), everywhere)
    t = torch.tensor([0.2, 0.6, 1.0])
    x_t = noise(teacher, 3)
    with torch.no_grad():
        close(teacher(x_t, t, condition).to("x0"), everywhere)
