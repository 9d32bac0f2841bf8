"""Model families of the flow kind against the pipelines of diffusers."""

import pytest
import torch

from pdmd import Guided, PhasePlan
from pdmd.schedules import shift_times
from tests.tiny_families import close, noise, ode
from tests.tiny_flows import FLOWS, flow, oracle


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
